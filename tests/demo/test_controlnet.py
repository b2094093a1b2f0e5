"""The ControlNets load as on the hub, and what the control map shows changes the result."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image

from demo.controlnet import KINDS, write_controlnet
from tests.demo.sampling import PROMPT, Pipeline, change, sample, seeded


def control_map(kind: str, number: int) -> Image.Image:
    """A smooth map like a depth's, or white lines on black like canny's; two of each."""
    y, x = np.mgrid[:128, :128] / 127
    if kind == "depth":
        values = (x, ((x - 0.5) ** 2 + (y - 0.3) ** 2) / 0.74)[number]
    else:
        lines = (
            abs(abs(x - 0.5) + abs(y - 0.5) - 0.3) < 0.01,
            (abs(x - y) < 0.01) | (abs(x + y - 1) < 0.01),
        )
        values = lines[number].astype(float)
    return Image.fromarray((values * 255).astype(np.uint8)).convert("RGB")


def load(models: Path, family: str, kind: str) -> ControlNetModel:
    folder = models / "controlnet" / family / kind
    return ControlNetModel.from_pretrained(folder, local_files_only=True)


def control(
    pipe: Pipeline,
    nets: list[ControlNetModel],
    images: list[Image.Image],
    *,
    scale: float = 0.5,
    steps: int = 4,
) -> torch.Tensor:
    """Final latents of the family's ControlNet pipeline on the parts of `pipe`."""
    parts = {**pipe.components, "controlnet": nets}
    controlled = (
        StableDiffusionXLControlNetPipeline(**parts)
        if "tokenizer_2" in parts
        else StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    )
    controlled.set_progress_bar_config(disable=True)
    latents = controlled(
        PROMPT,
        image=images,
        controlnet_conditioning_scale=[scale] * len(nets),
        num_inference_steps=steps,
        eta=0.3,
        guidance_scale=0,
        generator=seeded(),
        output_type="latent",
    ).images
    assert isinstance(latents, torch.Tensor)
    return latents


@pytest.mark.parametrize("kind", KINDS)
def test_control_map_decides(
    models: Path, pipe: Pipeline, family: str, plain_latents: torch.Tensor, kind: str
) -> None:
    net = load(models, family, kind)
    first, second = (control(pipe, [net], [control_map(kind, n)]) for n in (0, 1))
    assert 0.2 < change(first, plain_latents) < 0.75
    assert 0.2 < change(second, plain_latents) < 0.75
    assert change(second, first) > 0.2
    strong = control(pipe, [net], [control_map(kind, 0)], scale=1.0)
    assert change(strong, plain_latents) > change(first, plain_latents)
    assert torch.equal(sample(pipe), plain_latents)


def test_two_nets_stay_bounded(models: Path, pipe: Pipeline, family: str) -> None:
    nets = [load(models, family, kind) for kind in KINDS]
    images = [control_map(kind, 0) for kind in KINDS]
    assert control(pipe, nets, images, scale=1.0, steps=50).abs().max() < 40
    assert change(control(pipe, nets, images), control(pipe, nets[:1], images[:1])) > 0.1


def test_kinds_and_families_differ(models: Path, tmp_path: Path) -> None:
    folders = [
        models / "controlnet" / family / kind for family in ("sd15", "sd21") for kind in KINDS
    ]
    weights = {(folder / "diffusion_pytorch_model.safetensors").read_bytes() for folder in folders}
    assert len(weights) == 4
    with pytest.raises(ValueError, match="depth, canny"):
        write_controlnet("pose", "sd15", models / "sd15", tmp_path)
