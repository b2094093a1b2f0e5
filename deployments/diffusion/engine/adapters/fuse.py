"""An adapter that stays: the TCD-LoRA, fused into a UNet's weights when it is loaded."""

from pathlib import Path

import torch
from torch import nn

from deployments.diffusion.engine.adapters.contents import Contents, check_finite
from deployments.diffusion.engine.adapters.files import LoraError, read_file


@torch.no_grad()
def fuse(unet: nn.Module, path: Path) -> None:
    """W += alpha / rank * up @ down for each layer of a LoRA, computed in float32.

    Args:
        unet: on any device, in any floating dtype; on the meta device only shapes are checked.
        path: a safetensors file, or a folder with one.

    Raises `LoraError` if it is no plain LoRA of this UNet alone with finite numbers; the UNet is
    then of no use.
    """
    file = read_file(path)
    for place, change in Contents({"unet": unet}).of(file).items():
        if change.low is None or change.terms:
            raise LoraError(f"{file.name} is no plain LoRA, and nothing else is fused")
        weight = unet.get_parameter(f"{place.module}.weight")
        if weight.is_meta:
            continue
        up = change.low.up.float().to(weight.device)
        down = change.low.down.flatten(1).float().to(weight.device)
        fused = weight.flatten(1).float().addmm_(up.t(), down)
        weight.copy_(fused.view(weight.shape))
        check_finite(weight, file)
