"""How a replica says no: by an answer, which whoever asked makes an error again."""

import functools
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from deployments.contracts.errors import TcdError

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Refusal:
    """The request ends here, and why. Replicas answer with it instead of raising: Serve logs
    a traceback for whatever a replica raises, which bad input and a full queue do not earn.
    """

    error: TcdError


def refusing(
    method: Callable[Asked, Awaitable[Answer]],
) -> Callable[Asked, Coroutine[Any, Any, Answer | Refusal]]:
    """The method, answering with a `Refusal` where it would raise a `TcdError`."""

    @functools.wraps(method)
    async def answer(*args: Asked.args, **kwargs: Asked.kwargs) -> Answer | Refusal:
        try:
            return await method(*args, **kwargs)
        except TcdError as error:
            return Refusal(error)

    return answer


def accepted(answer: Answer | Refusal) -> Answer:
    """The answer of a replica. Raises the `TcdError` of a refusal."""
    if isinstance(answer, Refusal):
        raise answer.error
    return answer
