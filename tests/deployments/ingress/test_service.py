"""Deadlines of a request's walk, without a cluster."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from configs.app import ServiceArgs
from deployments.contracts.api import PreprocessForm
from deployments.contracts.errors import DeadlineExceeded
from deployments.contracts.jobs import ImageRequest
from deployments.ingress.assembly import Assembler
from deployments.ingress.catalogue import Catalogue
from deployments.ingress.service import Service

TIMEOUT_S = 0.05


async def never(*_: object) -> None:
    """A preprocessor that does not start."""
    await asyncio.Event().wait()


async def found(_: object) -> SimpleNamespace:
    return SimpleNamespace(card=None)


def stuck() -> Service:
    assembler = SimpleNamespace(assemble=never, preprocess=never)
    catalogue = SimpleNamespace(find=found)
    args = ServiceArgs(default_model="sd15", request_timeout_s=TIMEOUT_S)
    return Service(args, cast(Catalogue, catalogue), cast(Assembler, assembler))


@pytest.mark.parametrize("timeout_s", [None, 2 * TIMEOUT_S])
def test_a_map_that_never_comes(timeout_s: float | None) -> None:
    request = ImageRequest("a", timeout_s=timeout_s)

    async def stream() -> None:
        async for _ in stuck().stream(request):
            pass

    for attempt in (stuck().generate(request), stream()):
        with pytest.raises(DeadlineExceeded, match=f"within {timeout_s or TIMEOUT_S:g} s"):
            asyncio.run(asyncio.wait_for(attempt, 5))


def test_a_preprocessor_that_never_comes() -> None:
    asked = stuck().preprocess("depth", b"", PreprocessForm())
    with pytest.raises(DeadlineExceeded, match=f"within {TIMEOUT_S:g} s"):
        asyncio.run(asyncio.wait_for(asked, 5))
