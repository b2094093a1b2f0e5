"""A request's walk through the graph: fill the gaps, find the replica, wait, translate.

The HTTP routes and the Python handle both end here.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

from ray.exceptions import RayActorError, RayTaskError
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
    Control,
    FinishedImage,
    ImageJob,
    ImageRequest,
    ImageResult,
    PartialImage,
    Pixels,
    Refusal,
    StreamEvent,
)
from deployments.ingress.assembly import Assembled, Assembler
from deployments.ingress.catalogue import Catalogue, Model

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
        with _translated():
            model, ready = await self._assembled(request)
            try:
                result = await self._submit(model, ready)
            except RayActorError:
                # The replica died under it. Seeded work may be done twice: ask another, once.
                result = await self._submit(model, ready)
        if ready.original is None:
            return result
        images = await asyncio.to_thread(lambda: tuple(map(ready.restored, result.images)))
        return replace(result, images=images)

    async def stream(self, request: ImageRequest) -> AsyncIterator[StreamEvent]:
        """A request's events as they come; raises a `TcdError` if it cannot go on."""
        with _translated():
            model, ready = await self._assembled(request)
            events = cast(
                DeploymentResponseGenerator[StreamEvent | Refusal],
                model.handle.options(stream=True).stream.remote(ready.job, *ready.assets),
            )
            try:
                async with asyncio.timeout(_patience_s(ready.job)):
                    async for event in events:
                        if isinstance(event, Refusal):
                            raise event.error
                        if isinstance(event, PartialImage | FinishedImage):
                            pixels = await asyncio.to_thread(ready.restored, event.pixels)
                            yield replace(event, pixels=pixels)
                        else:
                            yield event
            except TimeoutError as error:
                raise _too_late(ready.job) from error
            except RayTaskError:
                await self.assembler.forget(ready.map_ids)
                raise
            finally:
                events.cancel()

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
        with _translated():
            return await self.assembler.preprocess(control)

    async def _submit(self, model: Model, ready: Assembled) -> ImageResult:
        response = cast(
            DeploymentResponse[ImageResult | Refusal],
            model.handle.submit.remote(ready.job, *ready.assets),
        )
        try:
            async with asyncio.timeout(_patience_s(ready.job)):
                result = await response
        except TimeoutError as error:
            raise _too_late(ready.job) from error
        except RayTaskError:
            await self.assembler.forget(ready.map_ids)
            raise
        finally:
            response.cancel()  # does nothing to a call that has ended
        if isinstance(result, Refusal):
            raise result.error
        return result

    async def _assembled(self, request: ImageRequest) -> tuple[Model, Assembled]:
        args = self._args
        if len(request.prompt) > args.max_prompt_chars:
            raise InvalidRequest(
                f"prompt has {len(request.prompt)} characters; {args.max_prompt_chars} at most",
                "prompt",
            )
        if request.n > args.max_images:
            raise InvalidRequest(f"n is {request.n}; {args.max_images} at most", "n")
        name = request.model or args.default_model
        model = await (self.catalogue.find(name) if name else self.catalogue.only())
        return model, await self.assembler.assemble(request, model.card)


@contextmanager
def _translated() -> Iterator[None]:
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


def _patience_s(job: ImageJob) -> float | None:
    return None if job.timeout_s is None else job.timeout_s + GRACE_S


def _too_late(job: ImageJob) -> DeadlineExceeded:
    return DeadlineExceeded(f"the request was not done within {job.timeout_s:g} s")
