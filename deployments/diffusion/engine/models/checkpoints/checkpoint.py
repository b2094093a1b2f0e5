"""A base checkpoint from disk: a diffusers folder, or a single safetensors file."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, TCDScheduler, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from configs.app import ModelArgs
from configs.families import Family
from configs.sources import fetch
from deployments.diffusion.engine.models.checkpoints.fitness import check_model
from deployments.diffusion.engine.models.checkpoints.header import WrongFile
from deployments.diffusion.engine.models.checkpoints.identity import TEXT_ENCODERS, Part
from deployments.diffusion.engine.models.checkpoints.noise import Noise
from deployments.diffusion.engine.models.checkpoints.single_file import (
    TextEncoder,
    read_text_encoder,
    read_unet,
)
from deployments.diffusion.engine.models.schedule import Schedule
from deployments.diffusion.engine.models.vae import read_vae

TOKENIZERS = ("tokenizer", "tokenizer_2")


@dataclass(frozen=True)
class Checkpoint:
    """The models of a checkpoint, on the CPU, as they were saved.

    Attributes:
        zero_empty_negative: an absent negative prompt is all zeros, not the empty text.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: tuple[nn.Module, ...]
    tokenizers: tuple[CLIPTokenizer, ...]
    schedule: Schedule
    zero_empty_negative: bool


# Names of modules in text encoders depend on the version of transformers.
def layers_of(text_encoder: nn.Module) -> int:
    """How many layers a text encoder has."""
    return sum(isinstance(module, CLIPEncoderLayer) for module in text_encoder.modules())


def final_norm(text_encoder: nn.Module) -> nn.Module:
    """What a text encoder's last states pass through."""
    modules: dict[str, nn.Module] = dict(text_encoder.named_modules())
    return next(norm for name, norm in modules.items() if name.endswith("final_layer_norm"))


def read_checkpoint(
    args: ModelArgs, family: Family, dtype: torch.dtype, device: torch.device
) -> Checkpoint:
    """Reads a model's base checkpoint.

    A single file holds weights only: its configurations and tokenizers are those of
    `args.config`, by default the family's base.

    Args:
        dtype: of all models but the VAE, which has the one that is safe for it.
        device: where they will run; they are read to the CPU.

    Raises `WrongFile` if it is something else, or cannot be sampled by TCD's steps.
    """
    path = fetch(args.checkpoint, variant=args.variant, layout="pipeline")
    if path.is_dir():
        noise = check_model(args, path, None)
        return _from_folder(path, noise, args, family, dtype, device)
    configs = fetch(args.config or family.base, layout="pipeline_configs")
    noise = check_model(args, path, configs)
    try:
        return _from_file(path, configs, noise, args, family, dtype, device)
    except WrongFile as error:
        raise WrongFile(f"checkpoint {path.name}: {error}") from error


def _from_folder(
    folder: Path,
    noise: Noise,
    args: ModelArgs,
    family: Family,
    dtype: torch.dtype,
    device: torch.device,
) -> Checkpoint:
    weights = {"use_safetensors": True, "variant": args.variant, "local_files_only": True}
    return Checkpoint(
        unet=UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", torch_dtype=dtype, **weights
        ),
        vae=read_vae(args.vae, folder, args.variant, dtype, device),
        text_encoders=tuple(
            kind.from_pretrained(folder, subfolder=name, dtype=dtype, **weights)
            for name, kind in _encoders(family)
        ),
        tokenizers=_tokenizers(folder, family),
        schedule=_schedule(folder, noise),
        zero_empty_negative=_zero_empty_negative(folder),
    )


def _from_file(
    file: Path,
    configs: Path,
    noise: Noise,
    args: ModelArgs,
    family: Family,
    dtype: torch.dtype,
    device: torch.device,
) -> Checkpoint:
    unet = UNet2DConditionModel.load_config(configs, subfolder="unet", local_files_only=True)
    return Checkpoint(
        unet=read_unet(file, unet, dtype),
        vae=read_vae(args.vae, file, args.variant, dtype, device, configs=configs),
        text_encoders=tuple(
            read_text_encoder(
                file, name, kind, CLIPTextConfig.from_pretrained(configs, subfolder=name), dtype
            )
            for name, kind in _encoders(family)
        ),
        tokenizers=_tokenizers(configs, family),
        schedule=_schedule(configs, noise),
        zero_empty_negative=_zero_empty_negative(configs),
    )


def _encoders(family: Family) -> Iterator[tuple[Part, TextEncoder]]:
    """Names and classes of a family's text encoders."""
    kinds: tuple[TextEncoder, ...] = (CLIPTextModel, CLIPTextModelWithProjection)
    yield from zip(TEXT_ENCODERS, kinds[: family.text_encoders], strict=False)


def _tokenizers(folder: Path, family: Family) -> tuple[CLIPTokenizer, ...]:
    return tuple(
        CLIPTokenizer.from_pretrained(folder, subfolder=name)
        for name in TOKENIZERS[: family.text_encoders]
    )


def _schedule(folder: Path, noise: Noise) -> Schedule:
    config = TCDScheduler.load_config(folder, subfolder="scheduler", local_files_only=True)
    return Schedule(TCDScheduler.from_config(config, **asdict(noise)))


def _zero_empty_negative(folder: Path) -> bool:
    index = json.loads((folder / "model_index.json").read_text())
    return bool(index.get("force_zeros_for_empty_prompt", False))
