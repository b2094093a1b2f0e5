"""diffusers' own pipelines with TCDScheduler, run alone for each image: what must come out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, TCDScheduler
from torch import Tensor

from configs.families import FamilyName
from deployments.contracts.jobs import FinishedImage, ImageJob, Latents, Pixels

LATENT_TOLERANCE = 1e-3  # relative
PIXEL_TOLERANCE = 2  # of 255


@dataclass(frozen=True)
class Answer:
    """What diffusers makes of one image.

    Attributes:
        estimates: x_0 as each step estimated it, before the VAE's scaling.
    """

    latents: Latents
    pixels: Pixels
    estimates: tuple[Tensor, ...]


def tcd_pipeline(models: Path, family: FamilyName) -> Any:
    """A family's pipeline with its TCD-LoRA fused."""
    pipeline = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = pipeline.from_pretrained(models / family, local_files_only=True)
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(models / "tcd-lora" / family, adapter_name="tcd")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe


class Oracle:
    """One checkpoint as a diffusers pipeline: TCD-LoRA fused, styles as adapters."""

    def __init__(self, models: Path, family: FamilyName, loras: Mapping[str, str]) -> None:
        self._pipe = tcd_pipeline(models, family)
        self._sources = dict(loras)
        self._loaded: set[str] = set()
        self._known: dict[ImageJob, Answer] = {}

    def image(self, job: ImageJob, index: int = 0) -> Answer:
        """Image `index` of a job, made alone; remembered."""
        key = replace(
            job,
            job_id="",
            seeds=(job.seeds[index],),
            partial_images=0,
            priority=0,
            timeout_s=None,
        )
        if key not in self._known:
            self._known[key] = self._make(key)
        return self._known[key]

    def forget(self, name: str) -> None:
        """Takes an adapter off the pipeline."""
        self._pipe.delete_adapters(name)
        self._loaded.discard(name)

    def decode(self, latents: Tensor) -> Pixels:
        """(C, h, w) latents as the pipeline's VAE shows them."""
        vae = self._pipe.vae
        with torch.inference_mode():
            image = vae.decode(latents[None] / vae.config.scaling_factor, return_dict=False)[0]
        return np.asarray(self._pipe.image_processor.postprocess(image)[0])

    def growth(self, job: ImageJob) -> float:
        """How many times larger a tiny change of the first noise is in the final latents.

        A random network can be chaotic: then rounding, which differs between batch sizes,
        grows beyond any tolerance, and the request cannot be held to one.
        """
        change = 1e-6
        nudged = self._make(replace(job, seeds=job.seeds[:1]), change)
        return distance(nudged.latents, self.image(job).latents) / change

    def _make(self, job: ImageJob, change: float = 0.0) -> Answer:
        self._weigh(job)
        generator = torch.Generator().manual_seed(job.seeds[0])
        noise = torch.randn((1, 4, job.height // 8, job.width // 8), generator=generator)
        nudge = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
        estimates: list[Tensor] = []
        latents: list[Tensor] = []
        scheduler = self._pipe.scheduler
        step = scheduler.step

        @wraps(step)  # the pipeline reads in its signature whether it takes an eta
        def watched(output: Tensor, t: Tensor, sample: Tensor, **more: Any) -> object:
            abar = scheduler.alphas_cumprod[t]
            estimates.append(((sample - (1 - abar).sqrt() * output) / abar.sqrt())[0])
            return step(output, t, sample, **more)

        def last(_: object, index: int, t: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
            latents[:] = [values["latents"][0].clone()]
            return values

        assert scheduler.config.prediction_type == "epsilon"  # `watched` knows no other
        scheduler.step = watched
        try:
            image = self._pipe(
                prompt=job.prompt,
                negative_prompt=job.negative_prompt,
                height=job.height,
                width=job.width,
                num_inference_steps=job.num_inference_steps,
                eta=job.eta,
                guidance_scale=job.guidance_scale,
                latents=noise * (1 + change * nudge),
                generator=generator,
                callback_on_step_end=last,
                **told_sizes(job),
            ).images[0]
        finally:
            scheduler.step = step
        return Answer(latents[0].numpy(), np.asarray(image), tuple(estimates))

    def _weigh(self, job: ImageJob) -> None:
        for lora in job.loras:
            if lora.name not in self._loaded:
                self._pipe.load_lora_weights(self._sources[lora.name], adapter_name=lora.name)
                self._loaded.add(lora.name)
        if job.loras:
            self._pipe.enable_lora()
            self._pipe.set_adapters([x.name for x in job.loras], [x.weight for x in job.loras])
        elif self._loaded:
            self._pipe.disable_lora()


def told_sizes(job: ImageJob) -> dict[str, tuple[int, int]]:
    """What a pipeline of sdxl is told of sizes: what the job names."""
    named = {"original_size": job.original_size, "target_size": job.target_size}
    return {name: size for name, size in named.items() if size is not None}


def distance(ours: Latents, theirs: Latents) -> float:
    """The larger of two relative errors: of the norm, and of the largest number."""
    error = ours.astype(np.float64) - theirs
    norm = np.linalg.norm(error) / np.linalg.norm(theirs)
    return float(max(norm, np.abs(error).max() / np.abs(theirs).max()))


def levels_apart(ours: Pixels, theirs: Pixels) -> int:
    """The largest difference at any pixel."""
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


def assert_same(ours: FinishedImage, theirs: Answer) -> None:
    """An image is what diffusers makes of the same request alone."""
    assert ours.latents.shape == theirs.latents.shape
    error = distance(ours.latents, theirs.latents)
    assert error <= LATENT_TOLERANCE, f"latents are {error:.1e} off"
    apart = levels_apart(ours.pixels, theirs.pixels)
    assert apart <= PIXEL_TOLERANCE, f"pixels are {apart} levels off"
