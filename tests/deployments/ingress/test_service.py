"""A request's walk without a cluster: deadlines, and replicas that die under a stream."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest
from ray.exceptions import ActorDiedError

from configs.app import ServiceArgs
from deployments.contracts.api import PreprocessForm
from deployments.contracts.errors import DeadlineExceeded, InvalidRequest, NotReady
from deployments.contracts.jobs import ImageJob, ImageRequest, Progress, VideoRequest
from deployments.ingress.request.assembly import Assembled, Assembler
from deployments.ingress.request.catalogue import Catalogue
from deployments.ingress.request.service import Service

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


def test_more_time_than_a_request_may_have() -> None:
    service, request = stuck(), ImageRequest("a", timeout_s=301)

    async def stream() -> None:
        async for _ in service.stream(request):
            pass

    video = VideoRequest("a", timeout_s=301)
    checked, made = service.check_video(video), service.animate(video, lambda _: None)
    for attempt in (service.generate(request), stream(), checked, made):
        with pytest.raises(InvalidRequest, match="timeout_s is 301; 300 at most") as refused:
            asyncio.run(attempt)
        assert refused.value.param == "timeout_s"


def test_a_preprocessor_that_never_comes() -> None:
    asked = stuck().preprocess("depth", b"", PreprocessForm())
    with pytest.raises(DeadlineExceeded, match=f"within {TIMEOUT_S:g} s"):
        asyncio.run(asyncio.wait_for(asked, 5))


class Mortal:
    """A model whose replica dies in a stream, after so many events."""

    def __init__(self, *lives: int) -> None:
        self._lives = list(lives)
        self.stream = SimpleNamespace(remote=self._stream)

    def options(self, *, stream: bool) -> "Mortal":
        assert stream
        return self

    def _stream(self, _: ImageJob) -> "Events":
        return Events(self._lives.pop(0))


class Events:
    """The answer of a replica that lives so long."""

    def __init__(self, life: int) -> None:
        self._left = life

    def __aiter__(self) -> "Events":
        return self

    async def __anext__(self) -> Progress:
        self._left -= 1
        if self._left < 0:
            raise ActorDiedError
        return Progress(0, 1, 4)

    def cancel(self) -> None:
        """A handle's."""


async def events_of(model: Mortal, wanted: int) -> int:
    """How many of them come."""
    job = ImageJob("job", "a", (0,), 64, 64)

    async def assemble(*_: object) -> Assembled:
        return Assembled(job)

    async def forget_failed(_: object) -> None:
        return

    async def find(_: object) -> SimpleNamespace:
        return SimpleNamespace(card=None, handle=model)

    assembler = SimpleNamespace(assemble=assemble, forget_failed=forget_failed)
    args = ServiceArgs(default_model="sd15")
    service = Service(args, cast(Catalogue, SimpleNamespace(find=find)), cast(Assembler, assembler))
    seen = 0
    async for _ in service.stream(ImageRequest("a")):
        seen += 1
        if seen == wanted:
            break
    return seen


@pytest.mark.parametrize(("lives", "seen"), [((0, 3), 3), ((3,), 3)])
def test_a_stream_that_has_not_begun_is_asked_for_again(lives: tuple[int, ...], seen: int) -> None:
    assert asyncio.run(events_of(Mortal(*lives), seen)) == seen


@pytest.mark.parametrize("lives", [(0, 0), (1, 3)])
def test_a_stream_that_cannot_be_saved(lives: tuple[int, ...]) -> None:
    with pytest.raises(NotReady, match="went away"):
        asyncio.run(events_of(Mortal(*lives), 3))
