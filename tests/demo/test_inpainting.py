"""The inpainting bases load as on the hub; the mask and the picture below it change the result."""

from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForInpainting,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    TCDScheduler,
)
from PIL import Image

from demo.layout import INPAINTING_FAMILIES
from tests.demo.sampling import PROMPT, change, picture, seeded

InpaintPipeline: TypeAlias = StableDiffusionInpaintPipeline | StableDiffusionXLInpaintPipeline


@pytest.fixture(scope="module", params=INPAINTING_FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipe(models: Path, family: str) -> InpaintPipeline:
    folder = models / f"{family}-inpainting"
    pipe = AutoPipelineForInpainting.from_pretrained(folder, local_files_only=True)
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe, StableDiffusionInpaintPipeline | StableDiffusionXLInpaintPipeline)
    return pipe


def mask(number: int) -> Image.Image:
    """White where to paint: the middle, or the right half."""
    pixels = np.zeros((128, 128), dtype=np.uint8)
    if number == 0:
        pixels[32:96, 32:96] = 255
    else:
        pixels[:, 64:] = 255
    return Image.fromarray(pixels)


def inpaint(
    pipe: InpaintPipeline, image: Image.Image, hole: Image.Image, *, steps: int = 8
) -> torch.Tensor:
    """Final latents of shape (1, 4, 16, 16)."""
    latents = pipe(
        PROMPT,
        image=image,
        mask_image=hole,
        height=128,
        width=128,
        strength=0.99,
        num_inference_steps=steps,
        eta=0.3,
        guidance_scale=0,
        generator=seeded(),
        output_type="latent",
    ).images
    assert isinstance(latents, torch.Tensor)
    return latents


def test_picture_and_mask_decide(pipe: InpaintPipeline) -> None:
    assert pipe.unet.config.in_channels == 9
    plain = inpaint(pipe, picture(0), mask(0))
    assert change(inpaint(pipe, picture(1), mask(0)), plain) > 0.2
    assert change(inpaint(pipe, picture(0), mask(1)), plain) > 0.2
    assert inpaint(pipe, picture(0), mask(0), steps=25).abs().max() < 40


def test_unet_sees_the_mask_and_the_picture_below_it(pipe: InpaintPipeline, family: str) -> None:
    source = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 9, 16, 16, generator=source)
    sample[:, 4] = (torch.arange(16) < 8).float()
    states = torch.randn(1, 77, pipe.unet.config.cross_attention_dim, generator=source)
    added = None
    if family == "sdxl":
        size = torch.tensor([[128.0, 128, 0, 0, 128, 128]])
        added = {"text_embeds": torch.randn(1, 64, generator=source), "time_ids": size}

    def predict(sample: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            noise: torch.Tensor = pipe.unet(
                sample, torch.tensor(500), states, added_cond_kwargs=added, return_dict=False
            )[0]
        return noise

    plain = predict(sample)
    other_mask, other_picture = sample.clone(), sample.clone()
    other_mask[:, 4] = 1 - sample[:, 4]
    other_picture[:, 5:] = sample[:, 5:].flip(-1)
    assert 0.5 < plain.std() < 1.1
    assert change(predict(other_mask), plain) > 0.1
    assert change(predict(other_picture), plain) > 0.2


def test_the_familys_tcd_lora_fits(models: Path, pipe: InpaintPipeline, family: str) -> None:
    plain = inpaint(pipe, picture(0), mask(0))
    pipe.load_lora_weights(models / "tcd-lora" / family)
    try:
        assert change(inpaint(pipe, picture(0), mask(0)), plain) > 0.05
    finally:
        pipe.unload_lora_weights()
