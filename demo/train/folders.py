"""Finished models as folders in the real formats, in half precision."""

from collections.abc import Mapping
from pathlib import Path

import diffusers
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedModel

from demo.base import (
    EULER,
    NOISE_SCHEDULE,
    write_scheduler,
    write_sd_index,
    write_sdxl_index,
)
from demo.text_encoder import PREFIX
from demo.tokenizer import write_tokenizer
from demo.train.model import Base
from demo.train.text import PADS

WEIGHTS = "diffusion_pytorch_model.safetensors"  # of a diffusers model


def save_base(base: Base, folder: Path, *, inpainting: bool = False) -> None:
    """Write a pipeline folder; its autoencoder is written by another stage."""
    save_text_encoders(base, folder)
    if base.family == "sdxl":
        write_scheduler(folder, "EulerDiscreteScheduler", NOISE_SCHEDULE | EULER)
        write_sdxl_index(folder, inpainting=inpainting)
    else:
        write_scheduler(folder, "PNDMScheduler", NOISE_SCHEDULE)
        write_sd_index(folder, inpainting=inpainting)
    save_half(base.unet, folder / "unet")


def save_text_encoders(base: Base, folder: Path) -> None:
    """Write the text encoders of a pipeline folder, with their tokenizers."""
    pad, *others = PADS[base.family]
    write_tokenizer(folder / "tokenizer", pad_token=pad)
    save_text_encoder(base.text_encoder, folder / "text_encoder")
    for pad in others:
        write_tokenizer(folder / "tokenizer_2", pad_token=pad)
        save_text_encoder(base.text_encoder_2, folder / "text_encoder_2")


def save_half(model: diffusers.ModelMixin, folder: Path) -> None:
    """Write a diffusers model in half precision, wherever it came from; it stays in full."""
    model.register_to_config(_name_or_path="")
    model.half().save_pretrained(folder)
    model.float()


def save_text_encoder(model: PreTrainedModel, folder: Path) -> None:
    """Write a CLIP text encoder under the keys of published checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(str(folder))
    prefix = PREFIX if isinstance(model, CLIPTextModel) else ""
    tensors = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    save_halves(tensors, folder / "model.safetensors")


def save_halves(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors in half precision, wherever they are."""
    halves = {key: tensor.detach().half().contiguous().cpu() for key, tensor in tensors.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, file, metadata={"format": "pt"})


def load_base(family: str, folder: Path, device: torch.device, scale: int) -> Base:
    """Read back what `save_base` wrote, in full precision and without gradients."""
    base = Base(family, scale=scale)
    base.unet.load_state_dict(load_file(folder / "unet" / WEIGHTS))
    load_text_encoders(base, folder)
    return base.to(device).requires_grad_(False).eval()


def load_text_encoders(base: Base, folder: Path) -> None:
    """Read back what `save_text_encoders` wrote."""
    text = load_file(folder / "text_encoder" / "model.safetensors")
    base.text_encoder.load_state_dict({k.removeprefix(PREFIX): t for k, t in text.items()})
    if base.family == "sdxl":
        text = load_file(folder / "text_encoder_2" / "model.safetensors")
        base.text_encoder_2.load_state_dict(text)


def load_unet(folder: Path, device: torch.device) -> UNet2DConditionModel:
    """The UNet of a pipeline folder in full precision."""
    unet: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(
        folder, subfolder="unet", local_files_only=True, torch_dtype=torch.float32
    )
    return unet.to(device)
