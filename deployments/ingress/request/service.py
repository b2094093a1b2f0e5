"""A request's walk through the graph: fill the gaps, find the replica, wait, translate.

The HTTP routes and the Python handle both end here.

What the death of a process costs, of a replica or of what stands behind it, is one more try: seeded
work may be done twice. A request waits for a replica for as long as its own limit allows, whether
that has to be woken, is being replaced, or is started for the first time; it does not wait for a
model that Serve has given up.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar, cast

from ray.exceptions import (
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator

from configs.app import ServiceArgs
from deployments.contracts.api import PreprocessForm
from deployments.contracts.errors import (
    DeadlineExceeded,
    EngineFault,
    InvalidRequest,
    NotReady,
    QueueFull,
    TcdError,
)
from deployments.contracts.jobs import (
    Caller,
    Completed,
    Control,
    FailedImage,
    FinishedImage,
    ImageJob,
    ImageRequest,
    ImageResult,
    PartialImage,
    Pixels,
    Progress,
    StreamEvent,
    VideoRequest,
    VideoResult,
)
from deployments.contracts.refusal import Refusal, accepted
from deployments.ingress.request.assembly import Assembled, Assembler
from deployments.ingress.request.catalogue import Catalogue, Model
from deployments.ingress.request.filling import video_job

OnProgress = Callable[[Progress], None]
Answer = TypeVar("Answer")
NOBODY = Caller()
CHECK_S = 10.0  # for a replica to say whether it would take a video
LEAST_S = 0.001
GRACE_S = 5.0  # the replica itself ends a late job; the ingress only waits no longer than this
BACK_PRESSURE_RETRY_MS = 1000
FAULT_PAUSE_S = 0.5  # for a replica whose engine broke to be out of Serve's rotation
FULL_PAUSE_S = (0.5, 30.0)  # a video that finds the queue full asks again after this
FORGET_S = 5.0
log = logging.getLogger("tcd.service")


class Service:
    """Answers image requests with the models that run."""

    def __init__(self, args: ServiceArgs, catalogue: Catalogue, assembler: Assembler) -> None:
        self._args = args
        self.catalogue = catalogue
        self.assembler = assembler

    async def generate(self, request: ImageRequest, caller: Caller = NOBODY) -> ImageResult:
        """Makes all images of a request; raises a `TcdError` if it can make none."""
        timeout_s = request.timeout_s or self._args.request_timeout_s
        until = asyncio.get_running_loop().time() + timeout_s

        async def ask() -> tuple[Assembled, ImageResult]:
            model, ready = await self._assembled(request, caller, until)
            return ready, await self._submit(model, ready)

        with translated(), self._within(timeout_s, request.model):
            ready, result = await _twice(ask)
        if ready.original is None:
            return result
        images = await asyncio.to_thread(lambda: tuple(map(ready.restored, result.images)))
        return replace(result, images=images)

    async def stream(
        self, request: ImageRequest, caller: Caller = NOBODY
    ) -> AsyncIterator[StreamEvent]:
        """A request's events as they come; raises a `TcdError` if it cannot go on.

        If a process dies before the first picture, all begins anew, `Progress` too.
        """
        timeout_s = request.timeout_s or self._args.request_timeout_s
        until = asyncio.get_running_loop().time() + timeout_s
        begun = False
        with translated(), self._within(timeout_s, request.model):
            for last_try in (False, True):
                try:
                    model, ready = await self._assembled(request, caller, until)
                    async for event in self._events(model, ready):
                        begun = begun or isinstance(event, _SHOWN)
                        if isinstance(event, PartialImage | FinishedImage):
                            pixels = await asyncio.to_thread(ready.restored, event.pixels)
                            yield replace(event, pixels=pixels)
                        else:
                            yield event
                    return
                except (RayError, RayServeException, EngineFault) as error:
                    if begun or last_try or not _died(error):
                        raise
                    await _pause(error)

    async def animate(
        self, request: VideoRequest, progress: OnProgress, caller: Caller = NOBODY
    ) -> VideoResult:
        """Makes a video; tells `progress` of every step. Waits while the model's queue is full."""
        timeout_s = request.timeout_s or self._args.request_timeout_s

        async def ask() -> VideoResult:
            model = await self._video_model(request)
            job = replace(video_job(request, model.card, timeout_s), caller=caller)
            return await self._animate(model, job, request.fps, progress)

        with translated(), self._within(timeout_s, request.model):
            while True:
                try:
                    return await _twice(ask)
                except QueueFull as error:
                    least, most = FULL_PAUSE_S
                    pause_s = min(max(error.retry_after_ms / 1000, least), most)
                    await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))

    async def check_video(self, request: VideoRequest, caller: Caller = NOBODY) -> str:
        """The name of the model that is to make a video. Raises a `TcdError` if none can."""
        with translated(), self._within(CHECK_S, request.model):
            async with asyncio.timeout(CHECK_S):
                model = await self._video_model(request)
                name = model.card.id
                if not self.catalogue.up(name):
                    return name  # it is checked when it is made, by the replica that is started
                job = video_job(request, model.card, self._args.request_timeout_s)
                asked = cast(
                    DeploymentResponse[Refusal | None],
                    model.handle.check.remote(replace(job, caller=caller)),
                )
                try:
                    answer = await asked
                finally:
                    asked.cancel()
        accepted(answer)
        return name

    async def _video_model(self, request: VideoRequest) -> Model:
        model = await self._model(request.prompt, request.model)
        if "video" not in model.card.tasks:
            able = [card.id for card in await self.catalogue.cards() if "video" in card.tasks]
            raise InvalidRequest(
                f"model {model.card.id!r} makes no videos; models that do: "
                f"{', '.join(able) or 'none'}",
                "model",
            )
        return model

    async def _animate(
        self, model: Model, job: ImageJob, fps: int, progress: OnProgress
    ) -> VideoResult:
        video: FinishedImage | None = None
        async for event in self._events(model, Assembled(job)):
            match event:
                case Progress():
                    progress(event)
                case FinishedImage():
                    video = event
                case FailedImage():
                    raise event.error
                case Completed() if video is not None:
                    return VideoResult(event.model, video.pixels, video.seed, fps, event.usage)
        raise NotReady("the model's replica ended before the video was done")

    async def preprocess(
        self, preprocessor: str, image: bytes, form: PreprocessForm
    ) -> tuple[str, Pixels]:
        """The id of a picture's control map, and the map: (height, width, 3) uint8."""
        control = Control(
            preprocessor,
            image,
            low_threshold=form.low_threshold,
            high_threshold=form.high_threshold,
        )
        timeout_s = self._args.request_timeout_s
        try:
            with translated():
                async with asyncio.timeout(timeout_s):
                    return await _twice(lambda: self.assembler.preprocess(control))
        except TimeoutError as error:
            raise _late(timeout_s) from error

    async def _submit(self, model: Model, ready: Assembled) -> ImageResult:
        response = cast(
            DeploymentResponse[ImageResult | Refusal],
            model.handle.submit.remote(ready.job, *ready.assets),
        )
        try:
            async with self.catalogue.waiting(model.card.id, self._patience(model, ready.job)):
                result = await response
        except (RayError, RayServeException):
            await self._forget_failed(ready)
            raise
        finally:
            response.cancel()  # does nothing to a call that has ended
        return accepted(result)

    async def _events(self, model: Model, ready: Assembled) -> AsyncIterator[StreamEvent]:
        """A job's events from its replica; leaving the iterator cancels the job."""
        events = cast(
            DeploymentResponseGenerator[StreamEvent | Refusal],
            model.handle.options(stream=True).stream.remote(ready.job, *ready.assets),
        )
        until = self._patience(model, ready.job)
        try:
            while True:
                # A limit for each event: whoever reads on may be another task than who began.
                async with self.catalogue.waiting(model.card.id, until):
                    event = await anext(events, None)
                if event is None:
                    return
                if isinstance(event, Refusal):
                    raise event.error
                yield event
        except (RayError, RayServeException):
            await self._forget_failed(ready)
            raise
        finally:
            events.cancel()

    async def _forget_failed(self, ready: Assembled) -> None:
        """Best effort: the map store may be what died."""
        try:
            async with asyncio.timeout(FORGET_S):
                await self.assembler.forget_failed(ready.map_ids)
        except (TimeoutError, RayError, RayServeException) as error:
            log.warning("the map store does not answer: %r", error)

    async def _assembled(
        self, request: ImageRequest, caller: Caller, until: float
    ) -> tuple[Model, Assembled]:
        """`until`: on the clock of the event loop; the job has what is left of the time."""
        if request.n > self._args.max_images:
            raise InvalidRequest(f"n is {request.n}; {self._args.max_images} at most", "n")
        async with asyncio.timeout_at(until):
            model = await self._model(request.prompt, request.model)
            ready = await self.assembler.assemble(request, model.card)
        left = max(until - asyncio.get_running_loop().time(), LEAST_S)
        return model, replace(ready, job=replace(ready.job, timeout_s=left, caller=caller))

    async def _model(self, prompt: str, asked: str | None) -> Model:
        most = self._args.max_prompt_chars
        if len(prompt) > most:
            raise InvalidRequest(f"prompt has {len(prompt)} characters; {most} at most", "prompt")
        name = asked or self._args.default_model or await self.catalogue.only()
        return await self.catalogue.find(name)

    def _patience(self, model: Model, job: ImageJob) -> float | None:
        """Until when a job's answer is waited for, on the clock of the event loop."""
        if job.timeout_s is None:
            return None
        grace_s = GRACE_S if self.catalogue.up(model.card.id) else 0.0
        return asyncio.get_running_loop().time() + job.timeout_s + grace_s

    @contextmanager
    def _within(self, timeout_s: float, asked: str | None) -> Iterator[None]:
        """Whoever finds that a request is too late, it is said with the time that it had."""
        try:
            yield
        except (TimeoutError, DeadlineExceeded) as error:
            absence = self.catalogue.absence(asked or self._args.default_model, timeout_s)
            raise absence or _late(timeout_s) from error


_SHOWN = (PartialImage, FinishedImage, FailedImage)


@contextmanager
def translated() -> Iterator[None]:
    """What a handle call raises, as one of this service's own errors where it is one."""
    try:
        yield
    except RayTaskError as error:
        # What a replica raised on purpose, without the traceback that its wrapper speaks.
        if isinstance(error.cause, TcdError):
            raise error.cause from error
        if not _died(error):
            raise
        raise NotReady(_WENT_AWAY) from error
    except BackPressureError as error:
        raise QueueFull("the model's queue is full", BACK_PRESSURE_RETRY_MS) from error
    except (RayError, RayServeException) as error:
        raise NotReady(_WENT_AWAY) from error


_WENT_AWAY = "the model's replica, or what it needed, went away; try again"


async def _twice(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """What `ask` comes to; asked once more, from the start, if a process died under it."""
    try:
        return await ask()
    except (RayError, RayServeException, EngineFault) as error:
        if not _died(error):
            raise
        await _pause(error)
    return await ask()


async def _pause(error: Exception) -> None:
    log.warning("asked once more, for: %r", error)
    if isinstance(error, EngineFault):
        await asyncio.sleep(FAULT_PAUSE_S)


def _died(error: Exception) -> bool:
    """Whether a process died under a call: the one that was called, one that was making a map for
    it, or the owner of one; or an engine. Of what stood behind a call Serve speaks with the bare
    base of its errors."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    died = (RayActorError, ObjectLostError, WorkerCrashedError, EngineFault)
    return isinstance(cause, died) or type(cause) is RayServeException


def _late(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"the request was not done within {timeout_s:g} s")
