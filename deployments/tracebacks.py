"""Tracebacks in the log without what their errors say.

What an error says may quote a prompt (pydantic's and a tokenizer's do), and prompts are left out
of the logs unless `log_prompts` is on. The log's records are made so, whoever writes them: Serve
logs by itself what a request failed with, and libraries do. Handlers need not know.
"""

import logging
import traceback
from collections.abc import Callable, Iterator
from logging import LogRecord

LEFT_OUT = "(what it says is not logged without log_prompts)"
# What these say is of a device or a thread, never of a request.
PLAIN = frozenset(
    {
        "torch.AcceleratorError",
        "torch.OutOfMemoryError",
        "deployments.diffusion.engine.pulse.Hang",
    }
)
CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


def leave_out_messages() -> None:
    """From now on this process logs of an error what kind it is, where it was raised and what stood
    behind it."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, _WithoutMessages):
        logging.setLogRecordFactory(_WithoutMessages(make))


def without_messages(error: BaseException) -> str:
    """A traceback as Python has it, errors behind it and those of a group included, but of each
    what kind it is in place of what it says. Ends without a line break."""
    return "".join(_parts(error, set())).rstrip("\n")


class _WithoutMessages:
    """Makes records whose tracebacks are written already: formatters write no other then."""

    def __init__(self, make: Callable[..., LogRecord]) -> None:
        self._make = make

    def __call__(self, *args: object, **more: object) -> LogRecord:
        record = self._make(*args, **more)
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = without_messages(record.exc_info[1])
            if record.name == "asyncio":  # which shows the task below, and so the error again
                record.msg = str(record.msg).partition("\n")[0]
        return record


def _parts(error: BaseException, seen: set[int]) -> Iterator[str]:
    """`seen`: what was told of already, and grows: behind an error of a group that may stand."""
    for one, link in reversed(list(_chain(error, seen))):
        yield link
        yield "Traceback (most recent call last):\n"
        yield from traceback.format_tb(one.__traceback__)
        yield f"{_told(one)}\n"
        if isinstance(one, BaseExceptionGroup):
            for number, part in enumerate(one.exceptions, start=1):
                yield f"Of these, number {number}:\n"
                yield from _parts(part, seen)


def _chain(error: BaseException, seen: set[int]) -> Iterator[tuple[BaseException, str]]:
    """An error and those that stood behind it, each with what leads to it from the next."""
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        behind, link = one.__cause__, CAUSE
        if behind is None and not one.__suppress_context__:
            behind, link = one.__context__, CONTEXT
        last = behind is None or id(behind) in seen
        yield one, "" if last else link
        one = behind


def _told(error: BaseException) -> str:
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    if name in PLAIN:
        return "".join(traceback.format_exception_only(error)).rstrip("\n")
    return f"{name} {LEFT_OUT}"
