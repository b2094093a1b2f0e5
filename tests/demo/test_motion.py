"""The motion adapter and its LoRAs load into AnimateDiff next to the TCD-LoRA, and move frames."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, TCDScheduler
from safetensors import safe_open

from demo.motion import MAX_FRAMES, MOTIONS, write_motion_lora
from tests.demo.sampling import PROMPT, change, seeded


@pytest.fixture(scope="module")
def pipe(models: Path) -> AnimateDiffPipeline:
    """With the TCD-LoRA active."""
    adapter = MotionAdapter.from_pretrained(
        models / "motion-adapter" / "sd15", local_files_only=True
    )
    pipe = AnimateDiffPipeline.from_pretrained(
        models / "sd15", motion_adapter=adapter, local_files_only=True
    )
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(models / "tcd-lora" / "sd15", adapter_name="tcd")
    return pipe


@pytest.fixture(scope="module")
def plain_frames(pipe: AnimateDiffPipeline) -> torch.Tensor:
    return animate(pipe)


@pytest.fixture
def without_motion(pipe: AnimateDiffPipeline) -> Iterator[AnimateDiffPipeline]:
    """The same with what the adapter adds set to zero."""
    added = {
        name: parameter
        for name, parameter in pipe.unet.named_parameters()
        if "motion_modules" in name and "proj_out" in name
    }
    kept = {name: parameter.data.clone() for name, parameter in added.items()}
    for parameter in added.values():
        parameter.data.zero_()
    yield pipe
    for name, parameter in added.items():
        parameter.data.copy_(kept[name])


def animate(
    pipe: AnimateDiffPipeline,
    *,
    frames: int = 8,
    steps: int = 4,
    latents: torch.Tensor | None = None,
) -> torch.Tensor:
    """Final latents of shape (1, 4, frames, 8, 8)."""
    result = pipe(
        PROMPT,
        num_frames=frames,
        width=64,
        height=64,
        num_inference_steps=steps,
        eta=0.3,
        guidance_scale=0,
        generator=seeded(),
        latents=latents,
        output_type="latent",
    ).frames
    assert isinstance(result, torch.Tensor)
    return result


def test_most_frames_stay_bounded(pipe: AnimateDiffPipeline) -> None:
    latents = animate(pipe, frames=MAX_FRAMES, steps=8)
    assert latents.shape == (1, 4, MAX_FRAMES, 8, 8)
    assert latents.abs().max() < 40


def test_motion_changes_the_frames(
    plain_frames: torch.Tensor, without_motion: AnimateDiffPipeline
) -> None:
    assert change(plain_frames, animate(without_motion)) > 0.2


def test_frames_see_each_other(pipe: AnimateDiffPipeline) -> None:
    noise = torch.randn(1, 4, 8, 8, 8, generator=seeded())
    other = noise.clone()
    other[:, :, 0] = noise[:, :, 0].flip(-1)
    first, second = animate(pipe, latents=noise.clone()), animate(pipe, latents=other)
    for frame in range(1, 8):
        assert change(second[:, :, frame], first[:, :, frame]) > 0.03


def test_motion_loras_change_the_frames(
    models: Path, pipe: AnimateDiffPipeline, plain_frames: torch.Tensor
) -> None:
    moved = []
    for name in MOTIONS:
        pipe.load_lora_weights(
            models / "motion-loras", weight_name=f"{name}.safetensors", adapter_name=name
        )
    try:
        for name in MOTIONS:
            pipe.set_adapters(["tcd", name], adapter_weights=[1.0, 1.2])
            moved.append(animate(pipe))
    finally:
        pipe.delete_adapters(list(MOTIONS))
        pipe.set_adapters(["tcd"])
    assert all(0.2 < change(frames, plain_frames) < 1.5 for frames in moved)
    assert change(moved[0], moved[1]) > 0.2
    assert torch.equal(animate(pipe), plain_frames)


def test_motion_lora_keys_are_the_hubs(models: Path, tmp_path: Path) -> None:
    with safe_open(models / "motion-loras" / "zoom-in.safetensors", "pt") as tensors:
        keys = set(tensors.keys())
    for attention in ("attn1", "attn2"):
        for layer in ("to_q", "to_k", "to_v", "to_out"):
            for part in ("down", "up"):
                assert (
                    "unet.down_blocks.0.motion_modules.0.transformer_blocks.0."
                    f"{attention}.processor.{layer}_lora.{part}.weight"
                ) in keys
    with pytest.raises(ValueError, match="zoom-in, pan-left"):
        write_motion_lora("tilt-up", models / "motion-adapter" / "sd15", tmp_path / "a.safetensors")
