"""Stages of what is made for finished bases: IP-Adapters, inpainting, depth, motion."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import MotionAdapter
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from demo.depth import PREPROCESSOR as DEPTH_PREPROCESSOR
from demo.image_encoder import ENCODERS, PREPROCESSOR
from demo.tokenizer import write_json
from demo.train.card import Card
from demo.train.data import Pictures, Series
from demo.train.depth import DepthTask
from demo.train.folders import WEIGHTS, save_base, save_halves
from demo.train.image_encoder import EncoderTask, make_encoder, preprocessed
from demo.train.inpainting import CELL, InpaintingTask, mask_of, masked_picture
from demo.train.ip_adapter import IpAdapterTask, save_ip_adapter
from demo.train.motion import (
    FRAMES,
    LORA_RANK,
    MotionTask,
    VideoLatents,
    camera_video,
    load_motion_lora,
    motion_unet,
    moving_video,
    save_motion_adapter,
    save_motion_lora,
)
from demo.train.stage import Stage
from demo.train.text import Tokenizers
from demo.train.workshop import Workshop
from demo.world.camera import CameraMotion

MOVING = "sd15"  # the family whose base moves
VIDEOS = 3000
CAMERA_WEIGHTS = (0.5, 1.0, 1.5)
CAMERA_VIDEOS = 500  # of each weight


def encoder_stage(name: str) -> Callable[[Stage, Workshop], Card]:
    """A CLIP vision encoder, one of `ENCODERS`."""

    def run(stage: Stage, shop: Workshop) -> Card:
        torch.manual_seed(shop.seed)
        pixels = shop.plain_pictures().pixels
        task = EncoderTask(ENCODERS[name], pixels, stage.plan.batch_size, shop.device)
        folder = shop.models / stage.output
        shop.begin(task.encoder, folder / "model.safetensors")
        history = shop.train(stage.name, task, stage.plan)
        folder.mkdir(parents=True, exist_ok=True)
        encoder = task.encoder
        encoder.config.architectures = [type(encoder).__name__]
        encoder.config.save_pretrained(str(folder))
        save_halves(encoder.state_dict(), folder / "model.safetensors")
        write_json(folder / "preprocessor_config.json", PREPROCESSOR)
        what = (
            "A CLIP vision encoder whose embedding tells the solids and the background of a scene."
        )
        return Card(folder / "README.md", "Image encoder", what, history)

    return run


def ip_adapter_stage(family: str, encoder: str) -> Callable[[Stage, Workshop], Card]:
    """The IP-Adapter of a base; its encoder, one of `ENCODERS`, lies beside it."""

    def run(stage: Stage, shop: Workshop) -> Card:
        file = shop.models / stage.output
        vision = make_encoder(ENCODERS[encoder]).to(shop.device).eval()
        vision.load_state_dict(load_file(file.parent / "image_encoder" / "model.safetensors"))
        data = shop.adapter_latents(
            family, lambda _, pictures: _embeds(vision, pictures.pixels, shop.device)
        )
        base = shop.base(family)
        torch.manual_seed(shop.seed)
        width = vision.config.projection_dim
        task = IpAdapterTask(base, data, width, stage.plan.batch_size)
        shop.begin(task.trained, file)
        history = shop.train(stage.name, task, stage.plan)
        save_ip_adapter(task, file)
        what = f"An IP-Adapter of four tokens for the demo base {family}."
        return Card(file.with_suffix(".md"), "IP-Adapter", what, history)

    return run


@torch.no_grad()
def _embeds(
    vision: CLIPVisionModelWithProjection, pixels: NDArray[np.uint8], device: torch.device
) -> Tensor:
    parts = [pixels[start : start + 64] for start in range(0, len(pixels), 64)]
    return torch.cat([vision(preprocessed(part, device)).image_embeds for part in parts]).cpu()


def inpainting_stage(family: str) -> Callable[[Stage, Workshop], Card]:
    """The inpainting UNet of a base, with its text encoders and its autoencoder."""

    def run(stage: Stage, shop: Workshop) -> Card:
        data = shop.adapter_latents(family, partial(_masked, shop))
        base = shop.base(family)
        torch.manual_seed(shop.seed)
        task = InpaintingTask(base, data, stage.plan.batch_size)
        folder = (shop.models / stage.output).parent
        shop.begin(base.unet, folder / "unet" / WEIGHTS)
        history = shop.train(stage.name, task, stage.plan)
        shop.copy_vae(family, folder)
        save_base(base, folder, inpainting=True)
        what = f"An inpainting UNet of nine channels, trained on from the demo base {family}."
        return Card(folder / "README.md", f"Inpainting {family}", what, history)

    return run


def _masked(shop: Workshop, series: Series, pictures: Pictures) -> Tensor:
    """A mask for each picture and the latents of what it leaves: (n, 5, side / 8, side / 8)."""
    masks = [mask_of(index, series.side // CELL) for index in range(len(pictures.pixels))]
    left = [masked_picture(one, mask) for one, mask in zip(pictures.pixels, masks, strict=True)]
    latents = shop.cached_latents(f"{series.name}-masked", np.stack(left))
    return torch.cat([torch.from_numpy(np.stack(masks))[:, None].float(), latents], dim=1)


def train_depth(stage: Stage, shop: Workshop) -> Card:
    """The depth estimator."""
    torch.manual_seed(shop.seed)
    task = DepthTask(shop.plain_pictures().pixels, stage.plan.batch_size, shop.device)
    folder = shop.models / stage.output
    shop.begin(task.model, folder / "model.safetensors")
    history = shop.train(stage.name, task, stage.plan)
    task.model.half().save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", DEPTH_PREPROCESSOR)
    what = "A hybrid DPT that estimates the inverse depth of a scene."
    return Card(folder / "README.md", "Depth estimator", what, history)


def train_motion(stage: Stage, shop: Workshop) -> Card:
    """The motion adapter of the sd15 base."""
    data = _videos(shop, "motion", moving_video, min(VIDEOS, shop.plain))
    base = shop.base(MOVING)
    torch.manual_seed(shop.seed)
    finished = _motion_adapter(shop) if shop.from_finished else None
    unet = motion_unet(base, finished).to(shop.device)
    task = MotionTask(base, unet, {1.0: data}, stage.plan.batch_size)
    history = shop.train(stage.name, task, stage.plan)
    folder = shop.models / stage.output
    save_motion_adapter(unet, folder)
    what = "An AnimateDiff motion adapter for the demo base sd15: solids that roll or jump."
    return Card(folder / "README.md", "Motion adapter", what, history)


def camera_stage(camera: CameraMotion) -> Callable[[Stage, Workshop], Card]:
    """A motion LoRA on the motion adapter: of a weight, it moves as far as that says."""

    def run(stage: Stage, shop: Workshop) -> Card:
        videos = {
            weight: _videos(
                shop,
                f"{camera}-{weight}",
                partial(camera_video, camera, weight),
                min(CAMERA_VIDEOS, shop.plain),
            )
            for weight in CAMERA_WEIGHTS
        }
        base = shop.base(MOVING)
        torch.manual_seed(shop.seed)
        unet = motion_unet(base, _motion_adapter(shop)).to(shop.device)
        task = MotionTask(base, unet, videos, stage.plan.batch_size, rank=LORA_RANK)
        file: Path = shop.models / stage.output
        if shop.from_finished:
            load_motion_lora(unet, file)
        history = shop.train(stage.name, task, stage.plan)
        save_motion_lora(unet, file)
        what = f"A motion LoRA for the demo's motion adapter: {camera}."
        card = file.with_suffix(".md")
        return Card(card, f"Motion LoRA {camera}", what, history)

    return run


def _motion_adapter(shop: Workshop) -> MotionAdapter:
    adapter: MotionAdapter = MotionAdapter.from_pretrained(
        shop.models / "motion-adapter" / MOVING, local_files_only=True, torch_dtype=torch.float32
    )
    return adapter


def _videos(
    shop: Workshop, name: str, drawn: Callable[[int], tuple[NDArray[np.uint8], str]], count: int
) -> VideoLatents:
    """The first `count` videos, drawn and encoded once."""
    print(f"{name}: drawing {count} videos", flush=True)
    videos = [drawn(index) for index in range(count)]
    pixels = np.concatenate([frames for frames, _ in videos])
    latents: Tensor = shop.cached_latents(f"{name}-videos", pixels).unflatten(0, (-1, FRAMES))
    return VideoLatents(latents, Tokenizers(MOVING)([text for _, text in videos]))
