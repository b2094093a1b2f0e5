"""Controls of all kinds for a stand-in's UNet, with random weights, in the files people have."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.controlnet import EMBEDDING_WIDTHS, GAINS, spare_the_latents
from demo.init import fill, generator
from demo.sgm import sgm_layer

WEIGHTS = "diffusion_pytorch_model.safetensors"
# A mode is to matter as much as a map.
UNION_GAINS = GAINS | {"task_embedding": 4.0, "spatial_ch_projs": 2.0, "control_add": 2.0}


def write_union(base: Path, folder: Path, modes: int = 8) -> ControlNetUnionModel:
    """A ControlNet-Union for the base in `base`; zero convolutions are random, too."""
    unet = UNet2DConditionModel.load_config(base, subfolder="unet")
    width = unet["block_out_channels"][0]
    config = {key: unet[key] for key in unet if not key.startswith("_")} | {
        "conditioning_embedding_out_channels": EMBEDDING_WIDTHS,
        "num_control_type": modes,
        "num_trans_channel": width,
        "num_proj_channel": width,
    }
    union = ControlNetUnionModel.from_config(config)
    fill(union, generator("union", base.name), UNION_GAINS)
    spare_the_latents(union)
    union.save_pretrained(folder)
    return union.eval()


def write_adapter(base: Path, folder: Path, kind: str, channels: int = 3) -> T2IAdapter:
    """A T2I-Adapter of diffusers' kind `kind` for the base in `base`."""
    widths = list(UNet2DConditionModel.load_config(base, subfolder="unet")["block_out_channels"])
    if kind == "full_adapter_xl":
        widths.append(widths[-1])
    adapter = T2IAdapter(
        in_channels=channels,
        channels=widths[:-1] if kind == "light_adapter" else widths,
        num_res_blocks=4 if kind == "light_adapter" else 2,
        downscale_factor=16 if kind == "full_adapter_xl" else 8,
        adapter_type=kind,
    )
    fill(adapter, generator(kind, base.name, channels), {"conv_in": 2.0, "block2": 0.5})
    adapter.save_pretrained(folder)
    return adapter.eval()


def save(tensors: Mapping[str, Tensor], file: Path, dtype: torch.dtype | None = None) -> Path:
    """Writes one safetensors file."""
    found = {name: t.to(dtype or t.dtype).contiguous() for name, t in tensors.items()}
    save_file(found, file)
    return file


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """A diffusers folder's."""
    return load_file(folder / WEIGHTS)


def original_net(folder: Path) -> dict[str, Tensor]:
    """A ControlNet under the names of the original code."""
    config = ControlNetModel.load_config(folder)
    hints = 2 * len(config["conditioning_embedding_out_channels"])
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors_in(folder).items():
        layer, _, part = name.rpartition(".")
        kind, *rest = layer.split(".")
        if kind == "controlnet_down_blocks":
            theirs = f"zero_convs.{rest[0]}.0"
        elif kind == "controlnet_mid_block":
            theirs = "middle_block_out.0"
        elif kind == "controlnet_cond_embedding":
            number = {"conv_in": 0, "conv_out": hints - 1}.get(rest[0])
            theirs = f"input_hint_block.{2 * (int(rest[-1]) + 1 if number is None else number)}"
        else:
            theirs = sgm_layer(layer, config["layers_per_block"])
        renamed[f"{theirs}.{part}"] = tensor
    return renamed


def original_adapter(adapter: T2IAdapter) -> dict[str, Tensor]:
    """A T2I-Adapter under TencentARC's names: see diffusers' convert_original_t2i_adapter.py."""
    renamed: dict[str, Tensor] = {}
    light = adapter.config.adapter_type == "light_adapter"
    for name, tensor in adapter.adapter.state_dict().items():
        if name.startswith("conv_in."):
            renamed[name] = tensor
            continue
        _, level, rest = name.split(".", 2)
        if light:
            renamed[f"body.{level}.{rest.replace('resnets', 'body')}"] = tensor
        elif rest.startswith("resnets."):
            _, index, inner = rest.split(".", 2)
            renamed[f"body.{2 * int(level) + int(index)}.{inner}"] = tensor
        else:
            renamed[f"body.{2 * int(level)}.{rest}"] = tensor
    return renamed


def same(one: nn.Module, other: Mapping[str, Tensor]) -> bool:
    """Whether a model has exactly these weights."""
    found = one.state_dict()
    return found.keys() == other.keys() and all(torch.equal(found[n], other[n]) for n in other)
