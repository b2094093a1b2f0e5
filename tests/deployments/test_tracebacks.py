"""What the log of a process says of errors that quote a prompt."""

import asyncio
import gc
import json
import logging
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import httpx
import pytest
import torch
from pydantic import BaseModel
from ray._common.formatters import JSONFormatter
from ray.serve import RunTarget
from ray.serve._private.logging_utils import ServeFormatter

from configs.app import ModelUserConfig
from deployments.contracts.jobs import Asset, ImageJob
from deployments.diffusion.deployment import Diffusion
from deployments.diffusion.engine.pulse import Hang
from deployments.tracebacks import PLAIN, leave_out_messages, without_messages
from graphs.model import DIFFUSION
from tests.serving import Served, beside, plain_model

PROMPT = "a dragon asleep"


class Asked(BaseModel):
    steps: int


def by_pydantic() -> None:
    Asked.model_validate({"steps": PROMPT})


def by_hand() -> None:
    raise ValueError(f"cannot read {PROMPT!r}")


def caused() -> None:
    try:
        by_hand()
    except ValueError as error:
        raise RuntimeError("no embedding") from error


def in_a_handler() -> None:
    try:
        by_hand()
    except ValueError:
        dict[str, int]()["nothing"]


def noted() -> None:
    error = KeyError("word")
    error.add_note(f"in {PROMPT!r}")
    raise error


def in_a_group() -> None:
    try:
        by_hand()
    except ValueError as error:
        raise ExceptionGroup(f"of {PROMPT}", [error]) from None


def in_a_circle() -> None:
    try:
        by_hand()
    except ValueError as error:
        raise error from error


QUOTING: list[tuple[Callable[[], None], list[str]]] = [
    (by_pydantic, ["by_pydantic", "pydantic_core._pydantic_core.ValidationError"]),
    (by_hand, ["by_hand", "ValueError"]),
    (caused, ["by_hand", "ValueError", "direct cause", "in caused", "RuntimeError"]),
    (in_a_handler, ["by_hand", "ValueError", "During handling", "in_a_handler", "KeyError"]),
    (noted, ["in noted", "KeyError"]),
    (in_a_group, ["ExceptionGroup", "by_hand", "ValueError"]),
    (in_a_circle, ["in_a_circle", "by_hand", "ValueError"]),
]


def logged(formatter: logging.Formatter, raises: Callable[[], None]) -> str:
    """What a handler with this formatter writes of what is raised."""
    out = StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    log = logging.getLogger("ray.serve.tcd.some")
    log.addHandler(handler)
    try:
        raises()
    except Exception:
        log.exception("it failed")
    finally:
        log.removeHandler(handler)
    return out.getvalue()


@pytest.mark.parametrize("formatter", [ServeFormatter("Some", "one"), JSONFormatter()])
@pytest.mark.parametrize(
    ("raises", "told"), QUOTING, ids=lambda given: getattr(given, "__name__", "")
)
def test_kinds_and_places_are_told_and_words_only_if_they_may_be(
    raises: Callable[[], None], told: list[str], formatter: logging.Formatter, whole: bool
) -> None:
    text = logged(formatter, raises)
    if isinstance(formatter, JSONFormatter):
        text = json.loads(text)["exc_text"]
    assert (PROMPT in text) is whole
    assert ("log_prompts" in text) is not whole
    assert __file__ in text
    place = 0
    for words in told:
        assert words in text[place:], text
        place = text.index(words, place)


def test_an_error_of_a_group_that_stands_behind_it_is_told_once() -> None:
    try:
        try:
            raise ExceptionGroup("two", [ValueError("one"), KeyError("other")])
        except ExceptionGroup as group:
            raise group.exceptions[0]  # noqa: B904  # as people do
    except ValueError as error:
        told = without_messages(error)
    assert told.count("ExceptionGroup (") == told.count("KeyError (") == 1
    assert told.splitlines()[-1].startswith("ValueError")


def test_what_an_error_was_raised_in_place_of_is_not_told(whole: bool) -> None:
    def replaced() -> None:
        try:
            by_hand()
        except ValueError:
            raise RuntimeError("no embedding") from None

    text = logged(logging.Formatter(), replaced)
    assert "RuntimeError" in text
    assert "ValueError" not in text
    assert "by_hand" not in text.replace("by_hand()", "")


def test_a_line_without_an_error_is_as_it_was(
    caplog: pytest.LogCaptureFixture, whole: bool
) -> None:
    logging.getLogger("tcd.engine").warning("%d rows", 3)
    logging.getLogger("tcd.engine").warning("none", exc_info=True)
    assert [record.getMessage() for record in caplog.records] == ["3 rows", "none"]
    assert "log_prompts" not in caplog.text


def test_a_task_that_nobody_asked_for_its_error(
    caplog: pytest.LogCaptureFixture, whole: bool
) -> None:
    async def alone() -> None:
        by_hand()

    async def forgetful() -> None:
        task = asyncio.create_task(alone())
        await asyncio.sleep(0)
        del task
        gc.collect()

    asyncio.run(forgetful())
    assert "never retrieved" in caplog.text
    assert "by_hand" in caplog.text
    assert (PROMPT in caplog.text) is whole


def test_what_is_said_of_devices_and_threads_is_told_always(whole: bool) -> None:
    hang = Hang("the decoder has not turned for 300 s")
    hang.add_note("in held.wait")
    errors = [torch.AcceleratorError("illegal access"), torch.OutOfMemoryError("of 80 GiB"), hang]
    kinds = [type(error) for error in errors]
    assert {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds} == PLAIN
    for error in errors:

        def fails(error: Exception = error) -> None:
            raise error

        text = logged(logging.Formatter(), fails)
        assert str(error) in text
        assert "in held.wait" in text or error is not hang


def test_twice_is_once(whole: bool) -> None:
    if not whole:
        once = logging.getLogRecordFactory()
        leave_out_messages()
        assert logging.getLogRecordFactory() is once


class Quoting(Diffusion):
    """One that fails as nobody expects, and says at what."""

    async def submit(self, job: ImageJob, *assets: Asset) -> NoReturn:
        raise LookupError(f"no token for {job.prompt!r}")


def quoting(models: Path, name: str, *, log_prompts: bool) -> RunTarget:
    deployment = DIFFUSION.options(
        func_or_class=Quoting,
        name="Diffusion",
        user_config=ModelUserConfig().model_dump(),
        _internal=True,
    )
    args = plain_model(models, "sd15", name).model_copy(update={"log_prompts": log_prompts})
    return RunTarget(deployment.bind(args), name=f"model-{name}", route_prefix=None)


def test_a_request_that_fails_unexpectedly_leaves_no_prompt_in_any_log(
    served: Served, demo_models: Path
) -> None:
    """Serve's own lines included; and the kind of error in those of the replica and the ingress."""
    assert served.logs is not None
    prompt = f"a dragon {uuid4().hex}"
    models = {"hushed": False, "telling": True}
    targets = [quoting(demo_models, name, log_prompts=may) for name, may in models.items()]
    with beside(*targets):
        served.wait_until_ready(*models)
        for name in models:
            body = {"model": name, "prompt": f"{name} {prompt}"}
            answer = httpx.post(f"{served.url}/v1/images/generations", json=body, timeout=60)
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "internal_error"
            assert prompt not in answer.text
    logs = [path for path in served.logs.parent.rglob("*") if path.is_file()]
    texts = {path.name: path.read_text(errors="replace") for path in logs}
    assert not [name for name, text in texts.items() if f"hushed {prompt}" in text]
    quote = [name for name, text in texts.items() if f"telling {prompt}" in text]
    assert any("replica_model-telling_Diffusion" in name for name in quote)
    assert not [name for name in quote if "replica_tcd" in name or "proxy" in name]
    for process in ("replica_model-hushed_Diffusion", "replica_tcd_Ingress"):
        text = "".join(text for name, text in texts.items() if process in name)
        assert "LookupError" in text, process
        assert "log_prompts" in text, process
