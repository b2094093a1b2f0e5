"""What the images of a job are made by, as answers say it."""

from collections.abc import Mapping
from dataclasses import replace

from deployments.contracts.jobs import (
    Control,
    ImageInput,
    ImageJob,
    ImageRequest,
    IpAdapter,
    VideoRequest,
)
from deployments.contracts.maps import is_map_id
from deployments.contracts.recipe import Recipe


def image_recipe(
    request: ImageRequest, model: str, job: ImageJob, names: Mapping[str, str]
) -> Recipe:
    """`names`: of the request's pictures, by field."""
    return replace(
        _recipe(request, model, job, names),
        mask=names.get("mask"),
        preserve_unmasked=request.preserve_unmasked,
    )


def video_recipe(
    request: VideoRequest, model: str, job: ImageJob, names: Mapping[str, str]
) -> Recipe:
    """The same of a video."""
    return replace(_recipe(request, model, job, names), fps=request.fps)


def _recipe(
    request: ImageRequest | VideoRequest, model: str, job: ImageJob, names: Mapping[str, str]
) -> Recipe:
    return Recipe(
        model=model,
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        width=job.width,
        height=job.height,
        num_inference_steps=job.num_inference_steps,
        eta=job.eta,
        guidance_scale=job.guidance_scale,
        prompt_syntax=job.prompt_syntax,
        clip_skip=job.clip_skip,
        original_size=job.original_size,
        target_size=job.target_size,
        loras=job.loras,
        image=names.get("image"),
        strength=None if job.image is None else job.strength,
        controls=named_controls(request, names),
        ip_adapters=named_ip_adapters(request, names),
        num_frames=job.num_frames,
        motion_loras=job.motion_loras,
    )


def named_controls(
    request: ImageRequest | VideoRequest, names: Mapping[str, ImageInput]
) -> tuple[Control, ...]:
    """A request's controls with names, or other pictures, instead of theirs."""
    return tuple(_control(c, p, names) for p, c in request.named_controls.items())


def named_ip_adapters(
    request: ImageRequest | VideoRequest, names: Mapping[str, ImageInput]
) -> tuple[IpAdapter, ...]:
    """The same of its IP-Adapters."""
    return tuple(_ip_adapter(a, p, names) for p, a in request.ip_adapters.items())


def _control(control: Control, place: str, names: Mapping[str, ImageInput]) -> Control:
    named = tuple(_name(image, param, names) for param, image in control.pictures(place).items())
    return replace(control, image=named if isinstance(control.image, tuple) else named[0])


def _ip_adapter(adapter: IpAdapter, place: str, names: Mapping[str, ImageInput]) -> IpAdapter:
    seen, mask = enumerate(adapter.images), adapter.mask
    return replace(
        adapter,
        images=tuple(_name(image, f"{place}.image.{i}", names) for i, image in seen),
        mask=None if mask is None else _name(mask, f"{place}.mask", names),
    )


def _name(image: ImageInput, param: str, names: Mapping[str, ImageInput]) -> ImageInput:
    return image if is_map_id(image) else names[param]
