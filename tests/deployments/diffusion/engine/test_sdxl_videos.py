"""AnimateDiff on sdxl: diffusers' own pipeline, and images where the motion layers add nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffSDXLPipeline,
    ControlNetModel,
    MotionAdapter,
    StableDiffusionXLControlNetPipeline,
    TCDScheduler,
)
from PIL import Image

from configs.app import Limits, ModelUserConfig
from demo.motion import write_motion_adapter
from deployments.contracts.jobs import ControlUse, ImageJob, IpAdapterUse, LoraWeight
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from tests.conftest import demo_loras
from tests.deployments.diffusion.engine.oracle import tcd_pipeline
from tests.deployments.diffusion.engine.tasks import ADAPTERS, Checkpoint, control_map, picture
from tests.deployments.diffusion.engine.test_videos import TOLERANCE, by_diffusers, distance

WIDTH, HEIGHT, FRAMES = 72, 64, 3
STILL, MOVING = "still", "moving"


@pytest.fixture(scope="module")
def adapters(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Motion adapters for the stand-in, in folders; layers of the still one add nothing."""
    folder = tmp_path_factory.mktemp("motion")
    write_motion_adapter(demo_models / "sdxl", folder / MOVING)
    adapter = MotionAdapter.from_pretrained(folder / MOVING)
    for name, weight in adapter.named_parameters():
        if ".proj_out." in name:
            torch.nn.init.zeros_(weight)
    adapter.save_pretrained(folder / STILL)
    return folder


def checkpoint(models: Path) -> Checkpoint:
    return Checkpoint(models, "sdxl", "sdxl", ADAPTERS["sdxl"])


@pytest.fixture(scope="module", params=[MOVING, STILL])
def engine(
    request: pytest.FixtureRequest, demo_models: Path, adapters: Path
) -> Iterator[tuple[str, Engine]]:
    motion = str(adapters / request.param)
    args = checkpoint(demo_models).args().model_copy(update={"motion_adapter": motion})
    styles = demo_loras(demo_models, "sdxl")
    config = ModelUserConfig(loras=styles, limits=Limits(max_frames=8))
    made = Engine(load(args), config)
    yield request.param, made
    made.stop()


def video(**fields: Any) -> ImageJob:
    usual: dict[str, Any] = {"num_frames": FRAMES, "num_inference_steps": 3, "eta": 0.0}
    return ImageJob("v", "a red ball", (4,), WIDTH, HEIGHT, **(usual | fields))


@pytest.mark.parametrize("guidance_scale", [0.0, 3.0])
def test_motion(
    engine: tuple[str, Engine], demo_models: Path, adapters: Path, guidance_scale: float
) -> None:
    """diffusers leaves the embedding of sizes and pooled text as it was drawn: it is repaired."""
    kind, ours = engine
    base = tcd_pipeline(demo_models, "sdxl")
    parts = {**base.components, "scheduler": TCDScheduler.from_config(base.scheduler.config)}
    motion = MotionAdapter.from_pretrained(adapters / kind)
    pipe = AnimateDiffSDXLPipeline(**parts, motion_adapter=motion)
    pipe.unet.add_embedding.load_state_dict(base.unet.add_embedding.state_dict())
    pipe.set_progress_bar_config(disable=True)
    negative = "blue" if guidance_scale > 1 else None
    job = video(guidance_scale=guidance_scale, negative_prompt=negative, eta=0.4)
    theirs = by_diffusers(pipe, job, num_frames=FRAMES)
    (made,) = ours.generate(job)
    assert distance(made, theirs) < TOLERANCE


def test_frames_are_images_where_nothing_moves(
    engine: tuple[str, Engine], demo_models: Path
) -> None:
    """With a style, a control and a picture to resemble; where the layers move something, they are
    not."""
    kind, ours = engine
    job = video(
        controls=(ControlUse("canny", (0,), 0.7),),
        ip_adapters=(IpAdapterUse("default", (1,), 0.6),),
        loras=(LoraWeight("neon", 0.5),),
        guidance_scale=2.5,
        original_size=(48, 64),
        target_size=(32, 40),
    )
    map_, embeds = (
        control_map("canny", WIDTH, HEIGHT),
        checkpoint(demo_models).embeds(picture(1, 90, 80)),
    )
    base = tcd_pipeline(demo_models, "sdxl")
    files = ADAPTERS["sdxl"]
    base.load_ip_adapter(
        demo_models / "ip-adapter",
        subfolder=files.subfolder,
        weight_name=files.weights,
        image_encoder_folder=None,
    )
    base.set_ip_adapter_scale(0.6)
    base.load_lora_weights(demo_loras(demo_models, "sdxl")["neon"], adapter_name="neon")
    base.set_adapters(["neon"], [0.5])
    net = ControlNetModel.from_pretrained(demo_models / "controlnet" / "sdxl" / "canny")
    pipe = StableDiffusionXLControlNetPipeline(**base.components, controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.manual_seed(job.seeds[0])
    noise = torch.randn(1, 4, FRAMES, HEIGHT // 8, WIDTH // 8, generator=generator)
    (made,) = ours.generate(job, [map_, embeds])
    found = torch.from_numpy(made.latents)
    for frame in range(FRAMES):
        theirs = pipe(
            job.prompt,
            width=WIDTH,
            height=HEIGHT,
            num_inference_steps=job.num_inference_steps,
            eta=job.eta,
            guidance_scale=job.guidance_scale,
            output_type="latent",
            image=Image.fromarray(map_),
            controlnet_conditioning_scale=0.7,
            original_size=job.original_size,
            target_size=job.target_size,
            ip_adapter_image_embeds=[torch.from_numpy(np.stack([embeds[1:], embeds[:1]]))],
            latents=noise[:, :, frame],
        ).images[0]
        apart = float((found[:, frame] - theirs).norm() / theirs.norm())
        assert apart < TOLERANCE if kind == STILL else apart > 10 * TOLERANCE
