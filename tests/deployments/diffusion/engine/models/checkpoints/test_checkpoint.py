"""Single-file checkpoints: the same images as diffusers makes of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, TCDScheduler

from configs.app import ModelArgs, ModelUserConfig
from configs.families import FamilyName
from deployments.contracts.jobs import ImageJob
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_single_file(demo_models: Path, family: FamilyName) -> None:
    file = demo_models / f"{family}-community.safetensors"
    args = ModelArgs(
        name="community",
        family=family,
        checkpoint=str(file),
        config=str(demo_models / family),
        tcd_lora=str(demo_models / "tcd-lora" / family),
        dtype="float32",
        device="cpu",
    )
    engine = Engine(load(args), ModelUserConfig())
    try:
        ours = engine.generate(ImageJob("1", "a house", (3,), 96, 64))[0]
    finally:
        engine.stop()

    pipeline = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = pipeline.from_single_file(
        str(file), config=str(demo_models / family), local_files_only=True
    )
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(demo_models / "tcd-lora" / family)
    pipe.fuse_lora()
    theirs = pipe(
        "a house",
        width=96,
        height=64,
        num_inference_steps=4,
        guidance_scale=0,
        eta=0.3,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    difference = ours.pixels.astype(int) - np.asarray(theirs).astype(int)
    assert np.abs(difference).max() <= 2
