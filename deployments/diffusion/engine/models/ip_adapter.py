"""IP-Adapters: pictures as keys and values for the cross-attention of a UNet.

What a picture adds to each layer does not depend on the step. So it is computed once a row, by one
product for all layers, and no UNet holds anything of an adapter.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from configs.app import IpAdapterArgs
from configs.sources import fetch
from deployments.diffusion.engine.adapters.files import LoraError, lora_file
from deployments.diffusion.engine.policy.capabilities import ImageEmbeds

FACE_WIDTH = 512  # of insightface's embeddings; no image encoder's states are as narrow


class CrossAttention(NamedTuple):
    """A layer of a UNet that attends to the prompt.

    Attributes:
        processor: its name among the UNet's `attn_processors`.
        level: how often the latents have been halved before it.
        width: of its keys, and of its values.
    """

    processor: str
    level: int
    width: int


def cross_attentions(unet: UNet2DConditionModel) -> tuple[CrossAttention, ...]:
    """The layers in the order in which files number them."""
    deepest = len(unet.config.block_out_channels) - 1
    found: list[CrossAttention] = []
    for name in unet.attn_processors:
        layer = name.removesuffix(".processor")
        if not layer.endswith(".attn2"):
            continue
        width = unet.get_submodule(layer).to_k.out_features
        found.append(CrossAttention(name, _level(layer, deepest), width))
    return tuple(found)


def _level(layer: str, deepest: int) -> int:
    block, number = layer.split(".")[:2]
    if block == "down_blocks":
        return int(number)
    return deepest - int(number) if block == "up_blocks" else deepest


class IpAdapter:
    """One IP-Adapter.

    Args:
        unet: the UNet that it was made for; nothing of it is changed.
        file: safetensors in the layout of h94/IP-Adapter (`image_proj.*`, `ip_adapter.*`).

    Attributes:
        reads: which embeddings of a picture it reads.

    Raises `ValueError` if it is no IP-Adapter, one for faces, or of another family.
    """

    def __init__(self, unet: UNet2DConditionModel, file: Path) -> None:
        projection, attention = _parts(file)
        width = int(unet.config.cross_attention_dim)
        self._to_keys_values = _stacked(attention, cross_attentions(unet), width).to(unet.dtype)
        if not self._to_keys_values.isfinite().all():
            raise ValueError(f"it holds numbers that are not finite in {unet.dtype}")
        self.project = _projection(unet, projection)
        first = next(layer for layer in self.project.modules() if isinstance(layer, nn.Linear))
        hidden = not isinstance(self.project, ImageProjection)
        self.reads = ImageEmbeds(hidden, int(first.in_features))

    def to(self, device: torch.device) -> "IpAdapter":
        """Brings it to a device."""
        self.project.to(device)
        self._to_keys_values = self._to_keys_values.to(device)
        return self

    def keys_values(self, embeds: Tensor) -> Tensor:
        """What a row attends to that sees some pictures.

        Args:
            embeds: (images, ...), as the adapter reads them.

        Returns (images * tokens, width): of each token the key and the value for the first of the
        UNet's `cross_attentions`, for the second, and so on.
        """
        tokens: Tensor = self.project(embeds)
        return F.linear(tokens.flatten(0, 1), self._to_keys_values)


def load_ip_adapters(
    args: Mapping[str, IpAdapterArgs], unet: UNet2DConditionModel
) -> dict[str, IpAdapter]:
    """A model's IP-Adapters by name. Raises `ValueError` naming the one that does not fit."""
    adapters: dict[str, IpAdapter] = {}
    for name, one in args.items():
        try:
            adapters[name] = IpAdapter(unet, lora_file(fetch(one.adapter)))
        except (LoraError, SafetensorError, ValueError) as error:
            raise ValueError(f"IP-Adapter {name!r} ({one.adapter}): {error}") from error
    return adapters


Part = dict[str, Tensor]


def _parts(file: Path) -> tuple[Part, Part]:
    """The projection of pictures, and the layers' keys and values."""
    parts: dict[str, Part] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(file).items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ValueError(f"it is no IP-Adapter: unexpected tensor {name}")
        parts[part][rest] = tensor
    projection, attention = parts["image_proj"], parts["ip_adapter"]
    if not projection or not attention:
        raise ValueError("it is no IP-Adapter: it needs image_proj.* and ip_adapter.*")
    by_face = "norm.weight" in projection and "proj.0.weight" in projection
    into = projection.get("proj_in.weight")  # InstantID's is else in the layout of plus
    by_face |= into is not None and into.shape[-1:] == (FACE_WIDTH,)
    if by_face or any("_lora." in name for name in attention):
        raise ValueError(
            "it is a FaceID adapter or InstantID's: it reads embeddings of faces by insightface, "
            "which nothing here makes; ip-adapter-plus-face reads faces out of pictures"
        )
    return projection, attention


def _stacked(attention: Part, layers: tuple[CrossAttention, ...], width: int) -> Tensor:
    """(all keys and values, width), as `IpAdapter.keys_values` returns them."""
    needed = {
        f"{1 + 2 * number}.to_{what}_ip.weight": (layer.width, width)
        for number, layer in enumerate(layers)  # the file counts self-attentions, too
        for what in "kv"
    }
    if set(attention) != set(needed):
        raise ValueError(
            f"it has {len(attention) / 2:g} layers of attention, this UNet has {len(layers)}: is "
            "it of another family?"
        )
    for name, shape in needed.items():
        if attention[name].shape != shape:
            raise ValueError(
                f"ip_adapter.{name} has the shape {tuple(attention[name].shape)}, this UNet needs "
                f"{shape}: is it of another family?"
            )
    return torch.cat([attention[name] for name in needed])


def _projection(unet: UNet2DConditionModel, tensors: Part) -> nn.Module:
    """From embeddings to tokens: diffusers' module, by what the file holds."""
    try:
        module: nn.Module = unet._convert_ip_adapter_image_proj_to_diffusers(
            tensors, low_cpu_mem_usage=False
        )
    except (KeyError, IndexError, RuntimeError) as error:
        raise ValueError(f"its image_proj.* are of no known kind ({error})") from error
    return module.to(unet.dtype).eval().requires_grad_(False)
