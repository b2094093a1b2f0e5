"""Runs of diffusers' pipelines on the stand-in models, and how their results differ."""

from typing import TypeAlias

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

PROMPT = "a red fox in the snow"

Pipeline: TypeAlias = StableDiffusionPipeline | StableDiffusionXLPipeline


def sample(
    pipe: Pipeline, prompt: str = PROMPT, *, steps: int = 4, guidance_scale: float = 0.0
) -> torch.Tensor:
    """Final latents of shape (1, 4, 16, 16)."""
    latents = pipe(
        prompt,
        num_inference_steps=steps,
        eta=0.3,
        guidance_scale=guidance_scale,
        generator=seeded(),
        output_type="latent",
    ).images
    assert isinstance(latents, torch.Tensor)
    return latents


def seeded() -> torch.Generator:
    """The noise of every run."""
    return torch.Generator().manual_seed(0)


def change(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """How far `latents` are from `reference`, in the latter's standard deviations."""
    return float((latents - reference).std() / reference.std())


def picture(number: int) -> Image.Image:
    """A picture of 128 by 128 pixels: 0 is a colour gradient, 1 has stripes, 2 a disc."""
    y, x = np.mgrid[:128, :128] / 127
    disc = ((x - 0.6) ** 2 + (y - 0.4) ** 2 < 0.07).astype(float)
    channels = (
        (x, y, 1 - x),
        (np.sin(9 * x) ** 2, np.full_like(x, 0.2), np.cos(5 * y) ** 2),
        (disc, 0.9 - 0.8 * disc, 0.4 + 0 * x),
    )[number]
    return Image.fromarray((np.stack(channels, axis=-1) * 255).astype(np.uint8))
