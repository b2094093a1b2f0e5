"""Writes random IP-Adapters that fit a base folder, keyed as in h94/IP-Adapter."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from demo.image_encoder import ENCODERS, EncoderShape
from demo.init import BIAS_STD, generator
from demo.unet import unet_of

TOKENS = 4  # that one picture becomes
PLUS_TOKENS = 16
HEAD_WIDTH = 64  # the loader counts the resampler's heads by it
RESAMPLER_WIDTH = 32
RESAMPLER_LAYERS = 4  # a constant of the loader
KEY_GAIN = 1.8
VALUE_GAIN = 2.0


class Adapter(NamedTuple):
    """Which base it fits, which of `ENCODERS` it takes, and what of its output.

    A `plus` adapter takes all states of the last layer but one, through a resampler; the
    others the projected embedding.
    """

    family: str
    encoder: str
    plus: bool


ADAPTERS = {
    "ip-adapter_sd15": Adapter("sd15", "vit-h", plus=False),
    "ip-adapter-plus_sd15": Adapter("sd15", "vit-h", plus=True),
    "ip-adapter_sdxl": Adapter("sdxl", "vit-bigg", plus=False),
    "ip-adapter-plus_sdxl_vit-h": Adapter("sdxl", "vit-h", plus=True),
}


def write_ip_adapter(name: str, base_folder: Path, file: Path) -> None:
    """Write the adapter `name` (one of `ADAPTERS`) for the base in `base_folder`.

    Raises ValueError for an unknown name.
    """
    if name not in ADAPTERS:
        raise ValueError(f"name must be one of {', '.join(ADAPTERS)}, not {name!r}")
    adapter = ADAPTERS[name]
    source = generator("ip-adapter", name)
    unet = unet_of(base_folder)
    width = int(unet.config.cross_attention_dim)
    encoder = ENCODERS[adapter.encoder]
    layers = (
        resampler(encoder, width, source) if adapter.plus else projection(encoder, width, source)
    )
    tensors = {f"image_proj.{key}": tensor for key, tensor in layers}
    # Self-attentions, which the adapter leaves alone, are counted too: the numbers are odd.
    for number, processor in enumerate(unet.attn_processors):
        attention = processor.removesuffix(".processor")
        if attention.endswith("attn2"):
            inner = unet.get_submodule(attention).to_k.out_features
            key, value = (
                linear(inner, width, source, KEY_GAIN),
                linear(inner, width, source, VALUE_GAIN),
            )
            tensors[f"ip_adapter.{number}.to_k_ip.weight"] = key
            tensors[f"ip_adapter.{number}.to_v_ip.weight"] = value
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt"})


def projection(
    encoder: EncoderShape, width: int, source: torch.Generator
) -> Iterator[tuple[str, torch.Tensor]]:
    """The embedding to four tokens, normalised: `ImageProjModel` of the original."""
    yield "proj.weight", linear(TOKENS * width, encoder.projection_dim, source)
    yield "proj.bias", bias(TOKENS * width, source)
    yield "norm.weight", torch.ones(width)
    yield "norm.bias", bias(width, source)


def resampler(
    encoder: EncoderShape, width: int, source: torch.Generator
) -> Iterator[tuple[str, torch.Tensor]]:
    """Queries that attend to the states: `Resampler` of the original."""
    inner = RESAMPLER_WIDTH
    yield "latents", torch.randn(1, PLUS_TOKENS, inner, generator=source)
    yield "proj_in.weight", linear(inner, encoder.hidden_size, source)
    yield "proj_in.bias", bias(inner, source)
    yield "proj_out.weight", linear(width, inner, source)
    yield "proj_out.bias", bias(width, source)
    yield "norm_out.weight", torch.ones(width)
    yield "norm_out.bias", bias(width, source)
    for layer in range(RESAMPLER_LAYERS):
        attention, feed_forward = f"layers.{layer}.0", f"layers.{layer}.1"
        for norm in (f"{attention}.norm1", f"{attention}.norm2", f"{feed_forward}.0"):
            yield f"{norm}.weight", torch.ones(inner)
            yield f"{norm}.bias", bias(inner, source)
        yield f"{attention}.to_q.weight", linear(HEAD_WIDTH, inner, source, 1.5)
        yield f"{attention}.to_kv.weight", linear(2 * HEAD_WIDTH, inner, source, 1.5)
        yield f"{attention}.to_out.weight", linear(inner, HEAD_WIDTH, source, 1.5)
        yield f"{feed_forward}.1.weight", linear(4 * inner, inner, source)
        yield f"{feed_forward}.3.weight", linear(inner, 4 * inner, source)


def linear(width: int, fan_in: int, source: torch.Generator, gain: float = 1.0) -> torch.Tensor:
    """A weight that takes unit variance to the square of `gain`."""
    return torch.empty(width, fan_in).normal_(std=gain / fan_in**0.5, generator=source)


def bias(width: int, source: torch.Generator) -> torch.Tensor:
    """A small bias."""
    return torch.empty(width).normal_(std=BIAS_STD, generator=source)
