"""A request of A1111's API as this service's own."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from deployments.contracts.api import RANDOM
from deployments.contracts.cards import ModelCard
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import ImageInput, ImageRequest
from deployments.ingress.answer.failures import invalid
from deployments.ingress.http.a1111.bodies import UNITS, Img2ImgBody, ProcessingBody
from deployments.ingress.http.a1111.ignored import ignored
from deployments.ingress.http.a1111.prompts import without_loras
from deployments.ingress.http.a1111.units import conditions

# What the service calls a field, and what it was called as it was sent.
SENT_AS: Mapping[str, str] = {
    "model": "override_settings.sd_model_checkpoint",
    "n": "batch_size",
    "size": "width",
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "strength": "denoising_strength",
    "clip_skip": "override_settings.CLIP_stop_at_last_layers",
    "loras": "prompt",
    "image": "init_images",
    "controls": UNITS,
    "ip_adapter": UNITS,
}


@dataclass(frozen=True)
class Translated:
    """A request, and the fields that were understood and change nothing of it."""

    request: ImageRequest
    ignored: tuple[str, ...]


def translated(
    body: ProcessingBody,
    card: ModelCard,
    start: ImageInput | None = None,
    mask: bytes | None = None,
) -> Translated:
    """What a body asks of a model.

    Args:
        start, mask: of img2img, as the service reads them.

    Raises `InvalidRequest` or `NotFound`.
    """
    passed_over = ignored(body)
    prompt, loras = without_loras(body.prompt, not body.disable_extra_networks)
    controls, resembled = conditions(body.units, start, card.controls)
    guidance = card.defaults.guidance_scale if body.cfg_scale is None else body.cfg_scale
    negative = body.negative_prompt
    if guidance <= 1 and negative.strip():  # A1111, too, has no use for it at a CFG scale of 1
        passed_over.append("negative_prompt")
        negative = ""
    skipped = None if body.clip_layer is None else body.clip_layer - 1
    if skipped and card.family == "sdxl":  # as in A1111, which skips nothing of these models
        passed_over.append(SENT_AS["clip_skip"])
        skipped = None
    try:
        request = ImageRequest(
            prompt,
            model=card.id,
            negative_prompt=negative,
            n=body.count,
            width=body.width,
            height=body.height,
            num_inference_steps=body.steps,
            eta=body.eta,
            guidance_scale=body.cfg_scale,
            prompt_syntax="weighted",
            clip_skip=skipped,
            seed=None if body.seed == RANDOM else body.seed,
            loras=loras,
            image=start,
            mask=mask,
            strength=body.denoising_strength if isinstance(body, Img2ImgBody) else None,
            controls=controls,
            ip_adapter=resembled,
        )
    except ValidationError as error:  # of what is no field of its own, such as tags in a prompt
        raise invalid(error) from error
    return Translated(request, tuple(passed_over))


def as_sent(error: InvalidRequest) -> InvalidRequest:
    """An error of a request that names the field as it was sent."""
    sent = SENT_AS.get((error.param or "").partition(".")[0])
    return error if sent is None else type(error)(f"{sent}: {error.message}", sent)
