"""The precision of VAEs: half where that is safe, and what it costs where it is not."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from configs.families import FamilyName
from deployments.contracts.jobs import FinishedImage, Pixels
from tests.conftest import model_args
from tests.deployments.diffusion.engine.harness import image_job
from tests.gpu.conftest import EngineOn

pytestmark = pytest.mark.gpu
# Levels of 255: the largest difference of any pixel to a VAE in single precision, and the mean.
# bfloat16 has 8 bits, of which an image in [-1, 1] needs 7 at its ends: one level is its rounding.
LEVELS = {torch.float32: (1, 0.01), torch.float16: (3, 0.2), torch.bfloat16: (12, 1.0)}


def in_single_precision(folder: Path, image: FinishedImage, device: torch.device) -> Pixels:
    """An image's latents as the VAE in `folder` shows them in float32."""
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True).to(device)
    latents = torch.from_numpy(image.latents)[None].to(device)
    with torch.inference_mode():
        decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0][0]
    pixels: Pixels = (
        (decoded / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    )
    return pixels


@pytest.mark.parametrize(
    ("family", "dtype", "on_cuda", "elsewhere"),
    [
        ("sd15", torch.float16, torch.float16, torch.float16),
        ("sdxl", torch.float16, torch.bfloat16, torch.float32),
        ("sdxl", torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ("sdxl", torch.float32, torch.float32, torch.float32),
    ],
    ids=str,
)
def test_the_precision_of_decoding(
    family: FamilyName,
    dtype: torch.dtype,
    on_cuda: torch.dtype,
    elsewhere: torch.dtype,
    demo_models: Path,
    device: torch.device,
    engine_on: EngineOn,
) -> None:
    """sd15's configuration lacks `force_upcast`, as the real one; sdxl's has it."""
    engine = engine_on(model_args(demo_models, family), dtype)
    chosen = on_cuda if device.type == "cuda" else elsewhere
    assert engine.components.vae.dtype is chosen
    most, usual = LEVELS[chosen]
    for seed in range(4):
        job = image_job(f"seed {seed}", seeds=(seed,), num_inference_steps=2)
        (image,) = engine.generate(job)
        right = in_single_precision(demo_models / family / "vae", image, device)
        apart = abs(image.pixels.astype(int) - right.astype(int))
        print(f"{family} {chosen}: at most {apart.max()} levels apart, usually {apart.mean():.2f}")
        assert apart.max() <= most
        assert apart.mean() <= usual
