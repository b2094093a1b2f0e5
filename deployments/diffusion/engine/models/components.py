"""The models of one checkpoint, loaded and fused. diffusers and transformers stop here."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    MotionAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.loaders.lora_pipeline import (
    StableDiffusionLoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
)
from torch import Tensor, nn
from transformers import CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from configs.app import ModelArgs
from configs.families import FAMILIES, Family
from configs.sources import fetch
from deployments.diffusion.engine.adapters.reader import LoraReader, lora_file
from deployments.diffusion.engine.adapters.stack import LoraStack, record_input_ranks
from deployments.diffusion.engine.models.checkpoint import TEXT_ENCODERS, read_checkpoint
from deployments.diffusion.engine.steps.conditioning import ControlNets, IpAdapter
from deployments.diffusion.engine.steps.tcd import Schedule

Addition = TypeVar("Addition", ControlNetModel, MotionAdapter)
INPAINTING_CHANNELS = 9  # latents 4, mask 1, masked picture 4


@dataclass(frozen=True)
class Components:
    """Everything that makes images of one checkpoint, on one device.

    Attributes:
        unet: with the TCD-LoRA fused into its weights.
        vae: in float32 where the checkpoint says that half precision overflows.
        text_encoders: one, or for sdxl two, with their tokenizers.
        zero_empty_negative: an absent negative prompt is all zeros, not the empty text.
        controlnets: the nets that requests may name.
        ip_adapter: on the UNet, if the model has one.
        motion_unet: the UNet with AnimateDiff's motion layers, a copy of its own.
        lora_stacks: style adapters by model name.
        lora_reader: reads style adapters for these models.
    """

    family: Family
    device: torch.device
    dtype: torch.dtype
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    tokenizers: tuple[CLIPTokenizer, ...]
    text_encoders: tuple[nn.Module, ...]
    schedule: Schedule
    zero_empty_negative: bool
    controlnets: ControlNets
    ip_adapter: IpAdapter | None
    motion_unet: UNetMotionModel | None
    lora_stacks: dict[str, LoraStack]
    lora_reader: LoraReader

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that the UNet denoises."""
        return int(self.vae.config.latent_channels)

    @property
    def takes_mask(self) -> bool:
        """Whether the UNet was trained to inpaint: it sees mask and masked picture."""
        return int(self.unet.config.in_channels) == INPAINTING_CHANNELS

    @property
    def max_prompt_tokens(self) -> int:
        """Text tokens that every text encoder reads, begin and end marks not counted."""
        return min(int(tokenizer.model_max_length) for tokenizer in self.tokenizers) - 2


def load(args: ModelArgs) -> Components:
    """Loads a checkpoint and fuses its TCD-LoRA.

    Raises `configs.sources.SourceError` if weights cannot be fetched, `OSError` or
    `ValueError` from the libraries if they are not what the family needs.
    """
    disable_progress_bar()
    family = FAMILIES[args.family]
    device = _device(args.device)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
        args.dtype
    ]
    base = read_checkpoint(args, family, dtype)
    unet, vae = base.unet, base.vae
    if args.tcd_lora is not None:
        _fuse(unet, fetch(args.tcd_lora), family)
    motion_unet = None
    if args.motion_adapter is not None:
        # Before the IP-Adapter: videos go without, and its layers would not fit.
        motion = _addition(MotionAdapter, args.motion_adapter, args.variant, dtype)
        motion_unet = UNetMotionModel.from_unet2d(unet, motion)
    ip_adapter = (
        None if args.ip_adapter is None else IpAdapter(unet, fetch(args.ip_adapter.adapter))
    )
    nets = {
        kind: _addition(ControlNetModel, source, args.variant, dtype)
        for kind, source in args.controls.items()
    }
    if dtype is torch.float16 and vae.config.force_upcast:
        vae = vae.to(torch.float32)
    for model in (unet, vae, *base.text_encoders, *nets.values()):
        model.to(device).eval().requires_grad_(False)

    encoders = dict(zip(TEXT_ENCODERS, base.text_encoders, strict=False))
    models: dict[str, nn.Module] = {"unet": unet, **encoders}
    if motion_unet is not None:
        models["motion_unet"] = motion_unet.to(device).eval().requires_grad_(False)
    return Components(
        family=family,
        device=device,
        dtype=dtype,
        unet=unet,
        vae=vae,
        tokenizers=base.tokenizers,
        text_encoders=base.text_encoders,
        schedule=base.schedule,
        zero_empty_negative=base.zero_empty_negative,
        controlnets=ControlNets(nets),
        ip_adapter=ip_adapter,
        motion_unet=motion_unet,
        lora_stacks={
            name: LoraStack(model, _input_ranks(model, device, dtype))
            for name, model in models.items()
        },
        lora_reader=LoraReader(models),
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _addition(
    kind: type[Addition], source: str, variant: str | None, dtype: torch.dtype
) -> Addition:
    """A ControlNet or motion adapter: of the checkpoint's variant, where it is published in it."""
    folder = fetch(source, variant=variant)
    if variant is not None and not any(folder.glob(f"*.{variant}.safetensors")):
        variant = None
    return kind.from_pretrained(
        folder, torch_dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
    )


def _fuse(unet: UNet2DConditionModel, path: Path, family: Family) -> None:
    loader = (
        StableDiffusionXLLoraLoaderMixin
        if family.text_encoders == 2
        else StableDiffusionLoraLoaderMixin
    )
    state_dict, alphas, metadata = loader.lora_state_dict(
        str(lora_file(path)), unet_config=unet.config, return_lora_metadata=True
    )
    loader.load_lora_into_unet(
        state_dict, network_alphas=alphas, unet=unet, adapter_name="tcd", metadata=metadata
    )
    if not getattr(unet, "peft_config", None):
        raise ValueError(f"{path} holds no weights for the UNet of {family.name}")
    unet.fuse_lora()
    unet.unload_lora()


def _input_ranks(model: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    def forward() -> object:
        if isinstance(model, UNet2DConditionModel):
            return model(**_unet_probe(model, device, dtype))
        if isinstance(model, UNetMotionModel):
            return model(**_motion_probe(model, device, dtype))
        return model(torch.zeros(1, 4, dtype=torch.long, device=device))

    with torch.inference_mode():
        return record_input_ranks(model, forward)


def _motion_probe(
    unet: UNetMotionModel, device: torch.device, dtype: torch.dtype
) -> dict[str, object]:
    frames, config = 2, unet.config
    sample = torch.zeros(1, config.in_channels, frames, 16, 16, device=device, dtype=dtype)
    text = torch.zeros(frames, 77, config.cross_attention_dim, device=device, dtype=dtype)
    return {
        "sample": sample,
        "timestep": torch.tensor([999], device=device),
        "encoder_hidden_states": text,
    }


def _unet_probe(
    unet: UNet2DConditionModel, device: torch.device, dtype: torch.dtype
) -> dict[str, object]:
    config = unet.config
    text = torch.zeros(1, 77, config.cross_attention_dim, device=device, dtype=dtype)
    added: dict[str, Tensor] | None = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {
            "text_embeds": torch.zeros(1, pooled, device=device, dtype=dtype),
            "time_ids": torch.zeros(1, 6, device=device, dtype=dtype),
        }
    return {
        "sample": torch.zeros(1, config.in_channels, 16, 16, device=device, dtype=dtype),
        "timestep": torch.tensor([999], device=device),
        "encoder_hidden_states": text,
        "added_cond_kwargs": added,
    }
