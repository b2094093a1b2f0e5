"""A request's gaps, filled from the model's card: what is made of it is a job."""

import secrets
import uuid

from configs.app import size_allowed
from deployments.contracts.cards import ModelCard
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import (
    MAX_SEED,
    Caller,
    ControlUse,
    ImageJob,
    ImageRequest,
    IpAdapterUse,
    VideoRequest,
)

MASKED_STEPS, MASKED_STRENGTH, PLAIN_STRENGTH = 8, 0.99, 0.8


def image_size(
    request: ImageRequest, card: ModelCard, start: tuple[int, int] | None
) -> tuple[int, int]:
    """(width, height): asked for, or the start picture's own, or the model's default.

    Checked before anything is brought to it: pictures are enlarged here, and maps made.
    """
    width, height = _wanted_size(request, card, start)
    limits = card.limits
    if not size_allowed(limits, width, height):
        raise InvalidRequest(
            f"size {width}x{height} is not allowed: each side must be a multiple of 8 from "
            f"{limits.min_side} to {limits.max_side} pixels, and the area at most "
            f"{limits.max_pixels} pixels",
            "size",
        )
    return width, height


def _wanted_size(
    request: ImageRequest, card: ModelCard, start: tuple[int, int] | None
) -> tuple[int, int]:
    if request.width is not None and request.height is not None:
        return request.width, request.height
    if start is None:
        return card.defaults.width, card.defaults.height
    width, height = start
    if width % 8 or height % 8:
        raise InvalidRequest(
            f"the image has {width}x{height} pixels, and sizes are multiples of 8; name the size "
            f"to be made, such as {_side_near(width, card)}x{_side_near(height, card)}",
            "size",
        )
    return width, height


def image_job(
    request: ImageRequest,
    card: ModelCard,
    size: tuple[int, int],
    *,
    image: int | None,
    mask: int | None,
    controls: tuple[ControlUse, ...],
    ip_adapter: IpAdapterUse | None,
) -> ImageJob:
    """The job that a request for images means for a model, without its `timeout_s`."""
    defaults = card.defaults
    first = secrets.randbelow(2**32) if request.seed is None else request.seed
    if first + request.n - 1 > MAX_SEED:
        raise InvalidRequest(f"seed + n - 1 must be at most {MAX_SEED}", "seed")
    steps = request.num_inference_steps
    if steps is None:
        steps = defaults.num_inference_steps if mask is None else MASKED_STEPS
    strength = request.strength
    if strength is None:
        strength = 1.0 if image is None else PLAIN_STRENGTH if mask is None else MASKED_STRENGTH
    return ImageJob(
        job_id=uuid.uuid4().hex,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seeds=tuple(range(first, first + request.n)),
        width=size[0],
        height=size[1],
        num_inference_steps=steps,
        eta=defaults.eta if request.eta is None else request.eta,
        guidance_scale=(
            defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
        ),
        loras=request.loras,
        image=image,
        mask=mask,
        strength=strength,
        controls=controls,
        ip_adapter=ip_adapter,
        partial_images=request.partial_images,
        priority=request.priority,
    )


def video_job(request: VideoRequest, card: ModelCard, timeout_s: float, caller: Caller) -> ImageJob:
    """The job that a request for a video means for a model."""
    if (request.width is None) != (request.height is None):
        raise InvalidRequest("width and height come together or not at all", "size")
    defaults = card.defaults
    return ImageJob(
        job_id=uuid.uuid4().hex,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seeds=(secrets.randbelow(2**32) if request.seed is None else request.seed,),
        width=request.width or defaults.width,
        height=request.height or defaults.height,
        num_inference_steps=request.num_inference_steps or defaults.num_inference_steps,
        eta=defaults.eta if request.eta is None else request.eta,
        guidance_scale=(
            defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
        ),
        loras=request.loras,
        motion_loras=request.motion_loras,
        num_frames=request.num_frames,
        priority=request.priority,
        timeout_s=request.timeout_s or timeout_s,
        caller=caller,
    )


def _side_near(side: int, card: ModelCard) -> int:
    """A side that the model makes."""
    return min(max(side // 8 * 8, card.limits.min_side), card.limits.max_side)
