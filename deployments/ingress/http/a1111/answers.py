"""Answers of txt2img and img2img."""

import time
from collections.abc import Sequence

from pydantic import BaseModel, Field

from deployments.contracts.api import ErrorAnswer, ErrorBody
from deployments.contracts.jobs import FinishedImage
from deployments.ingress.answer.failures import failure
from deployments.ingress.answer.infotext import UNGUIDED, infotext
from deployments.ingress.answer.media import Encoding
from deployments.ingress.http.a1111.bodies import ProcessingBody
from deployments.ingress.http.a1111.ignored import SAMPLER
from deployments.ingress.http.a1111.runs import Run
from deployments.ingress.http.json_text import filled
from deployments.ingress.request.workers import Workers, together

# Pictures that were sent are not sent back.
NOT_REPEATED = frozenset(("init_images", "mask", "alwayson_scripts"))


class DetailedErrorAnswer(ErrorAnswer):
    """OpenAI's error, and its message again where A1111's clients look for it."""

    detail: str


class Parameters(BaseModel):
    """The fields that act here, as they were sent, but for pictures."""

    model_config = {"extra": "allow"}


class SdImagesBody(BaseModel):
    """The answer of txt2img and img2img."""

    images: list[str] = Field(description="PNG files in base64, by seed")
    parameters: Parameters
    info: str = Field(description="JSON text: how each image was made")
    ignored: list[str] = Field([], description="fields that were understood and change nothing")
    failed: list[ErrorBody] = Field([], description="why images are missing, if not all of them")


class Info(BaseModel):
    """What `info` says. What does not exist here has the value that A1111 has for nothing."""

    prompt: str
    all_prompts: list[str]
    negative_prompt: str
    all_negative_prompts: list[str]
    seed: int
    all_seeds: list[int]
    subseed: int
    all_subseeds: list[int]
    subseed_strength: float = 0
    width: int
    height: int
    sampler_name: str = SAMPLER
    cfg_scale: float
    steps: int
    batch_size: int
    restore_faces: bool = False
    face_restoration_model: None = None
    sd_model_name: str
    sd_model_hash: None = None
    sd_vae_name: None = None
    sd_vae_hash: None = None
    seed_resize_from_w: int = -1
    seed_resize_from_h: int = -1
    denoising_strength: float | None
    extra_generation_params: dict[str, str | float] = {}
    index_of_first_image: int = 0
    infotexts: list[str]
    styles: list[str] = []
    job_timestamp: str
    clip_skip: int
    is_using_inpainting_conditioning: bool = False


async def answer_text(
    body: ProcessingBody, run: Run, ignored: Sequence[str], workers: Workers, encoding: Encoding
) -> bytes:
    """The answer to a request that was drawn, as JSON. `encoding`: of its files."""
    images = sorted(run.finished, key=lambda image: image.image_index)
    files = await together(
        workers.run(encoding.text, image.pixels, image.recipe, image.seed)
        for image in (images if body.send_images else ())
    )
    told = SdImagesBody(
        images=[],
        parameters=Parameters.model_validate(
            body.model_dump(include=set(type(body).model_fields) - NOT_REPEATED)
        ),
        info=_info(body, images).model_dump_json(),
        ignored=list(ignored),
        failed=[failure(one.error).body.error for one in run.failed],
    )
    return await workers.run(_with_images, told, files)


def _info(body: ProcessingBody, images: Sequence[FinishedImage]) -> Info:
    seeds = [image.seed for image in images]
    made = [(image.recipe, image.seed) for image in images if image.recipe is not None]
    recipe, count = made[0][0], len(images)
    return Info(
        prompt=body.prompt,
        all_prompts=[body.prompt] * count,
        negative_prompt=body.negative_prompt,
        all_negative_prompts=[body.negative_prompt] * count,
        seed=seeds[0],
        all_seeds=seeds,
        subseed=seeds[0],
        all_subseeds=seeds,
        width=recipe.width,
        height=recipe.height,
        cfg_scale=max(recipe.guidance_scale, UNGUIDED),
        steps=recipe.num_inference_steps,
        batch_size=body.batch_size,
        sd_model_name=recipe.model,
        denoising_strength=recipe.strength,
        extra_generation_params={"Eta": recipe.eta},
        infotexts=[infotext(recipe, seed) for recipe, seed in made],
        job_timestamp=time.strftime("%Y%m%d%H%M%S"),
        clip_skip=recipe.clip_skip + 1,
    )


def _with_images(told: SdImagesBody, files: Sequence[str]) -> bytes:
    """An answer as JSON."""
    images = (b'"%s"' % file.encode("ascii") for file in files)
    return filled(told.model_dump_json().encode(), "images", images)
