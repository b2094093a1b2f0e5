"""Bare calls of the models, as diffusers' pipelines make them, and the operations they take."""

from collections.abc import Callable
from functools import cache

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from configs.families import FamilyName
from configs.published import geometry
from deployments.diffusion.engine.models.skeletons import on_meta

META = torch.device("meta")


def unet_call(
    unet: UNet2DConditionModel, side: int, batch: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """A call for pictures of `side` pixels, with random inputs that are on the device."""
    config = unet.config

    def random(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, device=device, dtype=dtype)

    sample, text = random(4, side // 8, side // 8), random(77, config.cross_attention_dim)
    timesteps = torch.linspace(999, 19, batch, device=device).long()
    added: dict[str, Tensor] | None = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": random(pooled), "time_ids": random(6)}

    def call() -> Tensor:
        with torch.inference_mode():
            output: Tensor = unet(
                sample,
                timesteps,
                encoder_hidden_states=text,
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
        return output

    return call


def vae_call(vae: AutoencoderKL, latents: Tensor) -> Callable[[], Tensor]:
    """A call that decodes."""

    def call() -> Tensor:
        with torch.inference_mode():
            images: Tensor = vae.decode(latents, return_dict=False)[0]
        return images

    return call


@cache
def unet_flops(family: FamilyName, *, tiny: bool = False) -> int:
    """Floating-point operations of the UNet for one row, counted without computing anything."""
    shapes = geometry(family, tiny=tiny)
    unet = on_meta(UNet2DConditionModel, shapes.unet)
    return _counted(unet_call(unet, shapes.side, 1, META, torch.float32))


@cache
def vae_flops(family: FamilyName, *, tiny: bool = False) -> int:
    """Of decoding one picture."""
    shapes = geometry(family, tiny=tiny)
    latents = torch.empty(1, 4, shapes.side // 8, shapes.side // 8, device=META)
    return _counted(vae_call(on_meta(AutoencoderKL, shapes.vae), latents))


def _counted(call: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
