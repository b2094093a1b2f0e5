"""What every process that answers requests, or does jobs, sets up."""

import asyncio
import logging
from typing import cast

import pytest

from configs.app import ServiceArgs
from deployments.ingress.front import Front
from graphs.routing import route
from tests.deployments.ingress.fakes import FakeDirectory, Handle

PROMPT = "a dragon asleep"


@pytest.mark.parametrize("log_prompts", [False, True])
def test_what_errors_say_is_logged_with_prompts_alone(
    caplog: pytest.LogCaptureFixture, log_prompts: bool
) -> None:
    async def begin() -> None:
        directory = cast(Handle, FakeDirectory())
        Front(ServiceArgs(log_prompts=log_prompts), directory, directory, route, None)

    made = logging.getLogRecordFactory()
    try:
        asyncio.run(begin())
        try:
            raise LookupError(f"no token for {PROMPT!r}")
        except LookupError:
            logging.getLogger("some").exception("it failed")
    finally:
        logging.setLogRecordFactory(made)
    assert "LookupError" in caplog.text
    assert (PROMPT in caplog.text) is log_prompts
