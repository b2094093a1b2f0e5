"""A request's walk through the graph: fill the gaps, find the replica, wait, translate.

The HTTP routes and the Python handle both end here.
"""

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import cast

from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)
from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator

from configs.app import ServiceArgs
from deployments.contracts.api import ModelCard
from deployments.contracts.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    QueueFull,
)
from deployments.contracts.jobs import (
    MAX_SEED,
    ImageJob,
    ImageRequest,
    ImageResult,
    Refusal,
    StreamEvent,
)
from deployments.ingress.catalogue import Catalogue, Model

GRACE_S = 5.0  # the replica itself ends a late job; the ingress only waits no longer than this
BACK_PRESSURE_RETRY_MS = 1000


class Service:
    """Answers image requests with the models that run."""

    def __init__(self, args: ServiceArgs, catalogue: Catalogue) -> None:
        self._args = args
        self.catalogue = catalogue

    async def generate(self, request: ImageRequest) -> ImageResult:
        """Makes all images of a request; raises a `TcdError` if it cannot."""
        model, job = await self._job(request)
        with _translated():
            try:
                return await self._submit(model, job)
            except RayActorError:
                # The replica died under it. Seeded work may be done twice: ask another, once.
                return await self._submit(model, job)

    async def stream(self, request: ImageRequest) -> AsyncIterator[StreamEvent]:
        """A request's events as they come; raises a `TcdError` if it cannot go on."""
        model, job = await self._job(request)
        events = cast(
            DeploymentResponseGenerator[StreamEvent | Refusal],
            model.handle.options(stream=True).stream.remote(job),
        )
        try:
            with _translated():
                async with asyncio.timeout(_patience_s(job)):
                    async for event in events:
                        if isinstance(event, Refusal):
                            raise event.error
                        yield event
        except TimeoutError as error:
            raise _too_late(job) from error
        finally:
            events.cancel()

    async def _submit(self, model: Model, job: ImageJob) -> ImageResult:
        response = cast(DeploymentResponse[ImageResult | Refusal], model.handle.submit.remote(job))
        try:
            async with asyncio.timeout(_patience_s(job)):
                result = await response
        except TimeoutError as error:
            raise _too_late(job) from error
        finally:
            response.cancel()  # does nothing to a call that has ended
        if isinstance(result, Refusal):
            raise result.error
        return result

    async def _job(self, request: ImageRequest) -> tuple[Model, ImageJob]:
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
        return model, resolve(request, model.card, args.request_timeout_s)


def resolve(request: ImageRequest, card: ModelCard, timeout_s: float) -> ImageJob:
    """The job that a request means for a model: the model's defaults in every gap."""
    defaults = card.defaults
    if (request.width is None) != (request.height is None):
        raise InvalidRequest("width and height come together or not at all", "size")
    first = secrets.randbelow(2**32) if request.seed is None else request.seed
    if first + request.n - 1 > MAX_SEED:
        raise InvalidRequest(f"seed + n - 1 must be at most {MAX_SEED}", "seed")
    return ImageJob(
        job_id=uuid.uuid4().hex,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seeds=tuple(range(first, first + request.n)),
        width=request.width or defaults.width,
        height=request.height or defaults.height,
        num_inference_steps=request.num_inference_steps or defaults.num_inference_steps,
        eta=defaults.eta if request.eta is None else request.eta,
        guidance_scale=(
            defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
        ),
        loras=request.loras,
        partial_images=request.partial_images,
        priority=request.priority,
        timeout_s=request.timeout_s or timeout_s,
    )


@contextmanager
def _translated() -> Iterator[None]:
    """What a handle call raises, as one of this service's own errors where it is one."""
    try:
        yield
    except BackPressureError as error:
        raise QueueFull("the model's queue is full", BACK_PRESSURE_RETRY_MS) from error
    except (RayActorError, DeploymentUnavailableError, RayServeException) as error:
        raise NotReady("the model's replica went away; try again") from error


def _patience_s(job: ImageJob) -> float | None:
    return None if job.timeout_s is None else job.timeout_s + GRACE_S


def _too_late(job: ImageJob) -> DeadlineExceeded:
    return DeadlineExceeded(f"the request was not done within {job.timeout_s:g} s")
