"""An adapter that stays: the TCD-LoRA, fused into a UNet's weights when it is loaded."""

from pathlib import Path

import torch
from torch import nn

from deployments.diffusion.engine.adapters.files import read_file
from deployments.diffusion.engine.adapters.pairs import Pairs, check_finite


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
    for pair in Pairs({"unet": unet}).of(file):
        weight = unet.get_parameter(f"{pair.place.module}.weight")
        if weight.is_meta:
            continue
        up = (pair.up.float() * pair.scale).to(weight.device)
        down = pair.down.flatten(1).float().to(weight.device)
        fused = weight.flatten(1).float().addmm_(up, down)
        weight.copy_(fused.view(weight.shape))
        check_finite(weight, file)
