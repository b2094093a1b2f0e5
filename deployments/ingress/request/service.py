"""A request's walk through the graph: fill the gaps, find the replica, wait, translate.

The HTTP routes and the Python handle both end here.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)
from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator

from configs.app import ServiceArgs
from deployments.contracts.api import PreprocessForm
from deployments.contracts.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    QueueFull,
    TcdError,
)
from deployments.contracts.jobs import (
    Completed,
    Control,
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
CHECK_S = 10.0  # for a replica to say whether it would take a video
LEAST_S = 0.001
GRACE_S = 5.0  # the replica itself ends a late job; the ingress only waits no longer than this
BACK_PRESSURE_RETRY_MS = 1000


class Service:
    """Answers image requests with the models that run."""

    def __init__(self, args: ServiceArgs, catalogue: Catalogue, assembler: Assembler) -> None:
        self._args = args
        self.catalogue = catalogue
        self.assembler = assembler

    async def generate(self, request: ImageRequest) -> ImageResult:
        """Makes all images of a request; raises a `TcdError` if it cannot."""
        timeout_s = self._time_of(request)
        until = asyncio.get_running_loop().time() + timeout_s
        with translated(), within(timeout_s):
            model, ready = await self._assembled(request, until)
            try:
                result = await self._submit(model, ready)
            except (RayActorError, RayServeException) as error:
                if not _replica_died(error):
                    raise
                # Seeded work may be done twice: once more, from the start.
                model, ready = await self._assembled(request, until)
                result = await self._submit(model, ready)
        if ready.original is None:
            return result
        images = await asyncio.to_thread(lambda: tuple(map(ready.restored, result.images)))
        return replace(result, images=images)

    async def stream(self, request: ImageRequest) -> AsyncIterator[StreamEvent]:
        """A request's events as they come; raises a `TcdError` if it cannot go on."""
        timeout_s = self._time_of(request)
        until = asyncio.get_running_loop().time() + timeout_s
        begun = False
        with translated(), within(timeout_s):
            for last_try in (False, True):
                model, ready = await self._assembled(request, until)
                try:
                    async for event in self._events(model, ready.job, ready.assets):
                        begun = True
                        if isinstance(event, PartialImage | FinishedImage):
                            pixels = await asyncio.to_thread(ready.restored, event.pixels)
                            yield replace(event, pixels=pixels)
                        else:
                            yield event
                    return
                except (RayError, RayServeException) as error:
                    await self.assembler.forget_failed(ready.map_ids)
                    # As in `generate`, unless the caller has seen something of it.
                    if begun or last_try or not _replica_died(error):
                        raise

    async def _events(
        self, model: Model, job: ImageJob, assets: tuple[object, ...]
    ) -> AsyncIterator[StreamEvent]:
        """A job's events from its replica; leaving the iterator cancels the job."""
        events = cast(
            DeploymentResponseGenerator[StreamEvent | Refusal],
            model.handle.options(stream=True).stream.remote(job, *assets),
        )
        try:
            async with asyncio.timeout(_patience_s(job)):
                async for event in events:
                    if isinstance(event, Refusal):
                        raise event.error
                    yield event
        finally:
            events.cancel()

    async def animate(self, request: VideoRequest, progress: OnProgress) -> VideoResult:
        """Makes a video; tells `progress` of every step. Waits while the model's queue is full."""
        timeout_s = self._time_of(request)
        with translated(), within(timeout_s):
            model = await self._video_model(request)
            job = video_job(request, model.card, timeout_s)
            while True:
                try:
                    return await self._animate(model, job, request.fps, progress)
                except QueueFull as error:
                    await asyncio.sleep(error.retry_after_ms / 1000)

    async def check_video(self, request: VideoRequest) -> str:
        """The name of the model that is to make a video. Raises a `TcdError` if none can."""
        timeout_s = self._time_of(request)
        with translated(), within(CHECK_S):
            model = await self._video_model(request)
            job = video_job(request, model.card, timeout_s)
            asked = cast(DeploymentResponse[Refusal | None], model.handle.check.remote(job))
            answer = await asyncio.wait_for(asked, CHECK_S)
        accepted(answer)
        return model.card.id

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
        async for event in self._events(model, job, ()):
            match event:
                case Progress():
                    progress(event)
                case FinishedImage():
                    video = event
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
        with translated(), within(timeout_s):
            async with asyncio.timeout(timeout_s):
                try:
                    return await self.assembler.preprocess(control)
                except (RayActorError, RayServeException) as error:
                    if not _replica_died(error):
                        raise
                    return await self.assembler.preprocess(control)

    async def _submit(self, model: Model, ready: Assembled) -> ImageResult:
        response = cast(
            DeploymentResponse[ImageResult | Refusal],
            model.handle.submit.remote(ready.job, *ready.assets),
        )
        try:
            async with asyncio.timeout(_patience_s(ready.job)):
                result = await response
        except (RayError, RayServeException):
            await self.assembler.forget_failed(ready.map_ids)
            raise
        finally:
            response.cancel()  # does nothing to a call that has ended
        return accepted(result)

    async def _assembled(self, request: ImageRequest, until: float) -> tuple[Model, Assembled]:
        """`until`: on the clock of the event loop; the job has what is left of the time."""
        if request.n > self._args.max_images:
            raise InvalidRequest(f"n is {request.n}; {self._args.max_images} at most", "n")
        async with asyncio.timeout_at(until):
            model = await self._model(request.prompt, request.model)
            ready = await self.assembler.assemble(request, model.card)
        left = max(until - asyncio.get_running_loop().time(), LEAST_S)
        return model, replace(ready, job=replace(ready.job, timeout_s=left))

    def _time_of(self, request: ImageRequest | VideoRequest) -> float:
        """Seconds that a request has; raises `InvalidRequest` if it wants more than it may."""
        most = self._args.max_timeout_s
        if request.timeout_s is not None and request.timeout_s > most:
            raise InvalidRequest(
                f"timeout_s is {request.timeout_s:g}; {most:g} at most", "timeout_s"
            )
        return request.timeout_s or self._args.request_timeout_s

    async def _model(self, prompt: str, asked: str | None) -> Model:
        most = self._args.max_prompt_chars
        if len(prompt) > most:
            raise InvalidRequest(f"prompt has {len(prompt)} characters; {most} at most", "prompt")
        name = asked or self._args.default_model
        return await (self.catalogue.find(name) if name else self.catalogue.only())


@contextmanager
def translated() -> Iterator[None]:
    """What a handle call raises, as one of this service's own errors where it is one."""
    try:
        yield
    except RayTaskError as error:
        # What a replica raised on purpose, without the traceback that its wrapper speaks.
        raise error.cause if isinstance(error.cause, TcdError) else error from error
    except BackPressureError as error:
        raise QueueFull("the model's queue is full", BACK_PRESSURE_RETRY_MS) from error
    except (RayActorError, DeploymentUnavailableError, RayServeException) as error:
        raise NotReady("the model's replica went away; try again") from error


@contextmanager
def within(timeout_s: float) -> Iterator[None]:
    """Whoever finds that a request is too late, it is said with the time that it had."""
    try:
        yield
    except (TimeoutError, DeadlineExceeded) as error:
        raise DeadlineExceeded(f"the request was not done within {timeout_s:g} s") from error


def _replica_died(error: Exception) -> bool:
    """Whether a replica died under a call: the one that was called, or one that was making a map
    for it. Of the latter Serve speaks with the bare base of its errors."""
    return isinstance(error, RayActorError) or type(error) is RayServeException


def _patience_s(job: ImageJob) -> float | None:
    return None if job.timeout_s is None else job.timeout_s + GRACE_S
