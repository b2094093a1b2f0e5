"""A request's gaps, filled from the model's card: what is made of it is a job."""

import math
import secrets
import uuid
from collections.abc import Mapping

from configs.app import SizeLimits, size_allowed
from deployments.contracts.cards import ModelCard
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import (
    MAX_SEED,
    ControlUse,
    ImageJob,
    ImageRequest,
    IpAdapterUse,
    Quality,
    VideoRequest,
)

MASKED_STEPS, MASKED_STRENGTH, PLAIN_STRENGTH = 8, 0.99, 0.8
STEPS_OF: Mapping[Quality, float] = {"low": 0.5, "high": 2, "hd": 2, "xhigh": 4, "max": 4}


def wanted_size(
    request: ImageRequest | VideoRequest, card: ModelCard, start: tuple[int, int] | None
) -> tuple[int, int]:
    """(width, height) of an image or a video: asked for, or the start picture's own, or the model's
    default.

    Checked before anything is brought to it: pictures are enlarged here, and maps made.
    """
    width, height = _asked_size(request, card, start)
    limits = card.limits
    if not size_allowed(limits, width, height):
        nearest = nearest_size(width, height, limits)
        raise InvalidRequest(
            f"size {width}x{height} is not allowed: each side must be a multiple of 8 from "
            f"{limits.min_side} to {limits.max_side} pixels, and the area at most "
            f"{limits.max_pixels} pixels; the nearest is {nearest[0]}x{nearest[1]}",
            "size",
        )
    return width, height


def _asked_size(
    request: ImageRequest | VideoRequest, card: ModelCard, start: tuple[int, int] | None
) -> tuple[int, int]:
    if request.width is not None and request.height is not None:
        return request.width, request.height
    if start is None:
        return card.defaults.width, card.defaults.height
    return nearest_size(*start, card.limits)


def nearest_size(width: int, height: int, limits: SizeLimits) -> tuple[int, int]:
    """(width, height) of the allowed size that is most like this one: itself, or else of nearly
    the same shape, as large as may be."""
    least, most = -(-limits.min_side // 8) * 8, limits.max_side // 8 * 8
    scale = min(1.0, most / max(width, height), math.sqrt(limits.max_pixels / (width * height)))
    scale = max(scale, least / min(width, height))
    sides = [min(max(round(side * scale / 8) * 8, least), most) for side in (width, height)]
    while sides[0] * sides[1] > limits.max_pixels and max(sides) > least:
        sides[sides.index(max(sides))] -= 8
    return sides[0], sides[1]


def image_job(
    request: ImageRequest,
    card: ModelCard,
    size: tuple[int, int],
    *,
    image: int | None,
    mask: int | None,
    controls: tuple[ControlUse, ...],
    ip_adapters: tuple[IpAdapterUse, ...],
) -> ImageJob:
    """The job that a request for images means for a model, without its `timeout_s`."""
    defaults = card.defaults
    first = secrets.randbelow(2**32) if request.seed is None else request.seed
    if first + request.n - 1 > MAX_SEED:
        raise InvalidRequest(f"seed + n - 1 must be at most {MAX_SEED}", "seed")
    strength = request.strength
    if strength is None:
        strength = 1.0 if image is None else PLAIN_STRENGTH if mask is None else MASKED_STRENGTH
    usual = defaults.num_inference_steps if mask is None else MASKED_STEPS
    steps = request.num_inference_steps or _steps(request.quality, usual, strength, card)
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
        prompt_syntax=request.prompt_syntax or defaults.prompt_syntax,
        clip_skip=defaults.clip_skip if request.clip_skip is None else request.clip_skip,
        original_size=request.original_size,
        target_size=request.target_size,
        loras=request.loras,
        image=image,
        mask=mask,
        strength=strength,
        controls=controls,
        ip_adapters=ip_adapters,
        partial_images=request.partial_images,
        priority=request.priority,
    )


def _steps(quality: Quality | None, usual: int, strength: float, card: ModelCard) -> int:
    """Those of a request that does not say: at most as many as the model has; no fewer for a
    quality than leave one at this strength, if the usual number does."""
    if quality is None:
        return usual
    least = min(usual, math.ceil(1 / strength))
    return min(max(math.ceil(usual * STEPS_OF.get(quality, 1)), least), card.limits.max_steps)


def video_job(
    request: VideoRequest,
    card: ModelCard,
    size: tuple[int, int],
    *,
    image: int | None,
    controls: tuple[ControlUse, ...],
    ip_adapters: tuple[IpAdapterUse, ...],
) -> ImageJob:
    """The job that a request for a video means for a model, without its `timeout_s`."""
    defaults = card.defaults
    strength = request.strength
    if strength is None:
        strength = 1.0 if image is None else PLAIN_STRENGTH
    return ImageJob(
        job_id=uuid.uuid4().hex,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seeds=(secrets.randbelow(2**32) if request.seed is None else request.seed,),
        width=size[0],
        height=size[1],
        num_inference_steps=request.num_inference_steps or defaults.num_inference_steps,
        eta=defaults.eta if request.eta is None else request.eta,
        guidance_scale=(
            defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
        ),
        prompt_syntax=request.prompt_syntax or defaults.prompt_syntax,
        clip_skip=defaults.clip_skip if request.clip_skip is None else request.clip_skip,
        original_size=request.original_size,
        target_size=request.target_size,
        loras=request.loras,
        motion_loras=request.motion_loras,
        image=image,
        strength=strength,
        controls=controls,
        ip_adapters=ip_adapters,
        num_frames=request.num_frames,
        priority=request.priority,
    )
