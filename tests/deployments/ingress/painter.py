"""A service over a model that paints the colors that its prompts name, and the real safety checker
beside it, which finds red. No cluster."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from configs.app import SafetyArgs, ServiceArgs
from deployments.contracts.jobs import (
    Completed,
    FinishedImage,
    ImageJob,
    ImageResult,
    PartialImage,
    Pixels,
    Progress,
    StreamEvent,
)
from deployments.contracts.refusal import Refusal
from deployments.contracts.verdict import Verdict
from deployments.ingress.discovery.outlook import Outlook
from deployments.ingress.keys.quota import Quota
from deployments.ingress.request.moderation import Moderator
from deployments.ingress.request.service import Service
from deployments.preprocess.safety import Safety
from tests.deployments.ingress.fakes import Handle, Method, knowing
from tests.deployments.ingress.keyed import NO_USAGE, SIDE, NoMaps, Replica, card
from tests.safety_models import BLUE_PICTURE, GREEN_PICTURE, RED_PICTURE

COLORS = {"red": RED_PICTURE, "blue": BLUE_PICTURE, "green": GREEN_PICTURE}
LATENTS = np.zeros((4, 8, 8), np.float32)
assert RED_PICTURE.shape == (SIDE, SIDE, 3)


class Painter(Replica):
    """Image (of a video: frame) i has the color of the i-th word of the prompt, the last one from
    there on. In a stream, "red>green" is red as partial image and green in the end."""

    async def _submit(self, job: ImageJob) -> ImageResult | Refusal:
        self.jobs.append(job)
        images = tuple(painted(job, index) for index in range(len(job.seeds)))
        return ImageResult("sd15", images, job.seeds, SIDE, SIDE, NO_USAGE)

    async def _stream(self, job: ImageJob) -> AsyncIterator[StreamEvent | Refusal]:
        self.jobs.append(job)
        yield Progress(0, 1, job.num_inference_steps)
        for index, seed in enumerate(job.seeds):
            for partial in range(job.partial_images):
                yield PartialImage(index, partial, partial + 1, painted(job, index, 0))
            pixels = painted(job, index)
            if job.num_frames is not None:
                pixels = np.stack([painted(job, place) for place in range(job.num_frames)])
            yield FinishedImage(index, seed, pixels, LATENTS)
        yield Completed("sd15", NO_USAGE)


def painted(job: ImageJob, index: int, state: int = -1) -> Pixels:
    words = job.prompt.split()
    return COLORS[words[min(index, len(words) - 1)].split(">")[state]]


class Checker:
    """The handle of a safety checker: the real one, or what `instead` does.

    Attributes:
        seen: pictures that it was asked about.
    """

    def __init__(
        self, args: SafetyArgs, instead: Callable[[Pixels], Awaitable[object]] | None = None
    ) -> None:
        self._args = args
        self._instead = instead
        self._safety: Safety | None = None
        self.seen = 0
        self.look = Method(self._look)

    async def _look(self, picture: Pixels) -> object:
        self.seen += 1
        if self._instead is not None:
            return await self._instead(picture)
        if self._safety is None:
            self._safety = Safety(self._args)
        looking = asyncio.run_coroutine_threadsafe(self._safety.look(picture), _replicas_loop())
        answer: Verdict | Refusal = await asyncio.wrap_future(looking)
        return answer


@cache
def _replicas_loop() -> asyncio.AbstractEventLoop:
    """Where all safety checkers run: the queue of `serve.batch` is that of one loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def painting(
    args: ServiceArgs,
    quota: Quota | None = None,
    instead: Callable[[Pixels], Awaitable[object]] | None = None,
) -> tuple[Service, Painter, Checker]:
    """The service, its model, and its safety checker."""
    painter = Painter()
    handle: Any = painter
    models = [Outlook("sd15", "RUNNING", "ready", card("sd15"), handle)]
    checker = Checker(args.safety or SafetyArgs(checkpoint="nowhere"), instead)
    moderator = Moderator(args.safety, cast(Handle, checker))
    return Service(args, knowing(*models), NoMaps(args), quota, moderator), painter, checker


async def never(_: Pixels) -> None:
    """A checker that does not answer."""
    await asyncio.Event().wait()


def safety(folder: Path, **more: Any) -> SafetyArgs:
    """A configured safety checker."""
    return SafetyArgs(checkpoint=str(folder), device="cpu", **more)
