"""A service over one model that is none: it makes what it is told to, when it is told to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from configs.app import ServiceArgs
from configs.keys import KeyEntry, digest
from deployments.contracts.cards import CardDefaults, CardLimits, ModelCard
from deployments.contracts.figures import MapFigures
from deployments.contracts.jobs import (
    Completed,
    FinishedImage,
    ImageJob,
    ImageResult,
    Progress,
    StreamEvent,
    Usage,
)
from deployments.contracts.refusal import Refusal
from deployments.ingress.discovery.outlook import Outlook
from deployments.ingress.keys.keyring import Keyring
from deployments.ingress.keys.quota import Quota
from deployments.ingress.request.assembly import Assembler
from deployments.ingress.request.pictures import Pictures
from deployments.ingress.request.service import Service
from tests.deployments.ingress.fakes import Handle, knowing

SIDE = 64
LATENT = (SIDE // 8) ** 2
NO_USAGE = Usage(0, 0, 0)


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Keys(Keyring):
    """Keys that a test says; the key of each is its name."""

    def __init__(self, *entries: KeyEntry) -> None:
        super().__init__()
        self._put_in_force(entries)


def entry(name: str, **limits: Any) -> KeyEntry:
    return KeyEntry(name=name, sha256=digest(name.encode()), **limits)


class Call:
    """A response of a handle."""

    def __init__(self, work: Any) -> None:
        self._task = asyncio.ensure_future(work)

    def __await__(self) -> Any:
        return self._task.__await__()

    def cancel(self) -> None:
        self._task.cancel()


class Events:
    """A streamed response of a handle."""

    def __init__(self, events: AsyncIterator[StreamEvent | Refusal]) -> None:
        self._events = events
        self.cancelled = False

    def __anext__(self) -> Awaitable[StreamEvent | Refusal]:
        return anext(self._events)

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Replica:
    """What stands for a model's handle.

    Attributes:
        jobs: that it was given, in order.
        go: nothing is done before it is set.
        answers: what it says instead of images, one a job, until there are no more.
    """

    go: asyncio.Event = field(default_factory=asyncio.Event)
    jobs: list[ImageJob] = field(default_factory=list)
    answers: list[Refusal | Exception] = field(default_factory=list)

    @property
    def submit(self) -> Any:
        return _Method(lambda job, *_: Call(self._submit(job)))

    @property
    def stream(self) -> Any:
        return _Method(lambda job, *_: Events(self._stream(job)))

    @property
    def check(self) -> Any:
        return _Method(lambda _: Call(self._check()))

    def options(self, **_: object) -> "Replica":
        return self

    async def _submit(self, job: ImageJob) -> ImageResult | Refusal:
        self.jobs.append(job)
        await self.go.wait()
        if self.answers:
            return _told(self.answers.pop(0))
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        return ImageResult("sd15", (picture,) * len(job.seeds), job.seeds, SIDE, SIDE, NO_USAGE)

    async def _stream(self, job: ImageJob) -> AsyncIterator[StreamEvent | Refusal]:
        self.jobs.append(job)
        if self.answers:
            yield _told(self.answers.pop(0))
            return
        yield Progress(0, 1, job.num_inference_steps)
        await self.go.wait()
        shape = (SIDE, SIDE, 3) if job.num_frames is None else (job.num_frames, SIDE, SIDE, 3)
        latents = np.zeros((4, 8, 8), np.float32)
        for index, seed in enumerate(job.seeds):
            yield FinishedImage(index, seed, np.zeros(shape, np.uint8), latents)
        yield Completed("sd15", NO_USAGE)

    async def _check(self) -> None:
        return None


@dataclass
class _Method:
    remote: Any


def _told(answer: Refusal | Exception) -> Refusal:
    if isinstance(answer, Exception):
        raise answer
    return answer


class NoMaps(Assembler):
    """Assembles what needs no preprocessor."""

    def __init__(self, args: ServiceArgs) -> None:
        super().__init__(Pictures(args), None, lambda _: ())  # type: ignore[arg-type]
        self.maps: Any = SimpleNamespace(figures=self._figures, forget_failed=self._forget)

    async def _forget(self, _: tuple[str, ...]) -> None:
        pass

    async def _figures(self) -> MapFigures:
        return MapFigures({}, {}, 0, 0)


def card(name: str) -> ModelCard:
    return ModelCard(
        id=name,
        created=0,
        family="sd15",
        tasks=["text-to-image", "video"],
        checkpoint="none",
        dtype="float32",
        tcd_lora=None,
        loras={},
        defaults=CardDefaults(
            width=SIDE, height=SIDE, num_inference_steps=4, eta=0.3, guidance_scale=0.0
        ),
        limits=CardLimits(
            min_side=SIDE,
            max_side=512,
            max_pixels=512 * 512,
            max_prompt_tokens=75,
            max_loras=8,
            max_frames=32,
            max_pending=128,
        ),
    )


def service(
    replica: Replica, quota: Quota, args: ServiceArgs | None = None, names: Sequence[str] = ()
) -> Service:
    """`quota`: of the keys that its requests are held to."""
    known = args or ServiceArgs(default_model="sd15")
    handle = cast(Handle, replica)
    models = [
        Outlook(name, "RUNNING", "ready", card(name), handle) for name in names or ("sd15", "sdxl")
    ]
    return Service(known, knowing(*models), NoMaps(known), quota)


class Local:
    """A handle to an object of this process, which begins with the first call."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make

    @cached_property
    def _target(self) -> object:
        return self._make()

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._target, name))
