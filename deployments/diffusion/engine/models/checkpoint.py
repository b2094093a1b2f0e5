"""A base checkpoint from disk: a diffusers folder, or a single safetensors file."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, TCDScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from configs.app import ModelArgs
from configs.families import Family
from configs.sources import fetch
from deployments.diffusion.engine.models.schedule import Schedule
from deployments.diffusion.engine.models.vae import read_vae

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
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
    """
    path = fetch(args.checkpoint, variant=args.variant, layout="pipeline")
    if path.is_dir():
        return _from_folder(path, args, family, dtype, device)
    configs = fetch(args.config or family.base, layout="pipeline_configs")
    return _from_file(path, configs, args, family, dtype, device)


def _from_folder(
    folder: Path, args: ModelArgs, family: Family, dtype: torch.dtype, device: torch.device
) -> Checkpoint:
    weights = {"use_safetensors": True, "variant": args.variant, "local_files_only": True}
    classes = (CLIPTextModel, CLIPTextModelWithProjection)[: family.text_encoders]
    return Checkpoint(
        unet=UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", torch_dtype=dtype, **weights
        ),
        vae=read_vae(args.vae, folder, args.variant, dtype, device),
        text_encoders=tuple(
            cls.from_pretrained(folder, subfolder=name, dtype=dtype, **weights)
            for name, cls in zip(TEXT_ENCODERS, classes, strict=False)
        ),
        tokenizers=_tokenizers(folder, family),
        schedule=_schedule(folder),
        zero_empty_negative=_zero_empty_negative(folder),
    )


def _from_file(
    file: Path,
    configs: Path,
    args: ModelArgs,
    family: Family,
    dtype: torch.dtype,
    device: torch.device,
) -> Checkpoint:
    # The single-file loader of text encoders is the pipelines'; they are slow to import.
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline if family.text_encoders == 2 else StableDiffusionPipeline
    options = {} if family.text_encoders == 2 else {"safety_checker": None}
    vae = read_vae(args.vae, file, args.variant, dtype, device, configs=configs)
    loaded = pipeline.from_single_file(
        str(file), config=str(configs), local_files_only=True, torch_dtype=dtype, vae=vae, **options
    )
    return Checkpoint(
        unet=loaded.unet,
        vae=vae,
        text_encoders=tuple(
            loaded.components[name] for name in TEXT_ENCODERS[: family.text_encoders]
        ),
        tokenizers=_tokenizers(configs, family),
        schedule=_schedule(configs),
        zero_empty_negative=_zero_empty_negative(configs),
    )


def _tokenizers(folder: Path, family: Family) -> tuple[CLIPTokenizer, ...]:
    return tuple(
        CLIPTokenizer.from_pretrained(folder, subfolder=name)
        for name in TOKENIZERS[: family.text_encoders]
    )


def _schedule(folder: Path) -> Schedule:
    config = TCDScheduler.load_config(folder, subfolder="scheduler", local_files_only=True)
    return Schedule(TCDScheduler.from_config(config))


def _zero_empty_negative(folder: Path) -> bool:
    index = json.loads((folder / "model_index.json").read_text())
    return bool(index.get("force_zeros_for_empty_prompt", False))
