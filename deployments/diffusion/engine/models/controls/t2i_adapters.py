"""T2I-Adapters: small networks that make features of a map, once, for the UNet's first half."""

import torch
import torch.nn.functional as F
from diffusers import T2IAdapter, UNet2DConditionModel
from torch import Tensor

from configs.published import Config
from deployments.diffusion.engine.models.controls.files import ControlFile
from deployments.diffusion.engine.models.skeletons import on_meta

# How the first layer reads a map, by its channels: pixels a side that become one, channels.
_READINGS = {64: (8, 1), 192: (8, 3), 256: (16, 1), 768: (16, 3)}
_XL_FACTOR = 16


def read_t2i_adapter(
    file: ControlFile, unet: UNet2DConditionModel, dtype: torch.dtype
) -> T2IAdapter:
    """Reads a T2I-Adapter, on the CPU.

    Raises `ValueError` if it was not made for such a UNet.
    """
    if file.folder is None:
        config = _config(file)
    else:
        config = T2IAdapter.load_config(file.folder, local_files_only=True)
    adapter = on_meta(T2IAdapter, config)
    file.load(adapter, dtype)
    kind, made = adapter.config.adapter_type, list(adapter.config.channels)
    if kind == "light_adapter":
        made.append(made[-1])
    added = list(unet.config.block_out_channels)
    if kind == "full_adapter_xl":
        added.append(added[-1])  # in the middle
    if made != added:
        family = "sdxl" if kind == "full_adapter_xl" else "sd15"
        raise ValueError(f"{file.name} does not fit this model; it looks like one for {family}")
    return adapter


def features_of(adapter: T2IAdapter, map_: Tensor) -> tuple[Tensor, ...]:
    """What an adapter makes of a map, (3, height, width) in [0, 1]: (C, h, w) at each level.

    A side that the adapter cannot divide is continued by its last pixels.
    """
    if adapter.config.in_channels == 1:
        red, green, blue = map_
        map_ = (0.299 * red + 0.587 * green + 0.114 * blue)[None]  # as Pillow's "L"
    _, height, width = map_.shape
    factor = int(adapter.downscale_factor)
    whole = F.pad(map_[None], (0, -width % factor, 0, -height % factor), mode="replicate")
    return tuple(level[0] for level in adapter(whole))


def _config(file: ControlFile) -> Config:
    """The configuration that a file's shapes tell."""
    shapes = file.shapes
    light = "adapter.conv_in.weight" not in shapes
    seen = shapes["adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight"][1]
    if seen not in _READINGS:
        raise ValueError(f"{file.name} reads maps in {seen} channels; {list(_READINGS)} are known")
    factor, channels = _READINGS[seen]
    levels = range(file.count(r"adapter\.body\.(\d+)\."))
    last = "out_conv" if light else "resnets.0.block1"
    widths = [shapes[f"adapter.body.{level}.{last}.weight"][0] for level in levels]
    xl = "full_adapter_xl" if factor == _XL_FACTOR else "full_adapter"
    return {
        "adapter_type": "light_adapter" if light else xl,
        "channels": widths[:-1] if light else widths,
        "downscale_factor": factor,
        "in_channels": channels,
        "num_res_blocks": file.count(r"adapter\.body\.0\.resnets\.(\d+)\."),
    }
