"""LoRAs on a UNet in training, and their files in the formats that `demo.lora` lists."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from demo.kohya import kohya_layer
from demo.lora import Format
from demo.train.folders import save_halves

ADAPTER = "trained"


def add_lora(
    unet: UNet2DConditionModel | UNetMotionModel, rank: int, endings: tuple[str, ...]
) -> None:
    """Freeze the UNet, and add a LoRA on its layers whose names end with one of `endings`."""
    unet.requires_grad_(False)
    layers = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(endings)
    ]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), ADAPTER)


def lora_matrices(unet: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """The down and up weights by layer."""
    return {
        name: (module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight)
        for name, module in unet.named_modules()
        if ADAPTER in getattr(module, "lora_A", {})
    }


def save_lora(unet: UNet2DConditionModel, family: str, file_format: Format, file: Path) -> None:
    """Write the LoRA of a UNet of `family` in half precision."""
    save_halves(_tensors(unet, family, file_format), file)


def load_lora(unet: UNet2DConditionModel, family: str, file_format: Format, file: Path) -> None:
    """Fill the LoRA of a UNet of `family` with one that `save_lora` wrote.

    Raises ValueError if that has other layers or another rank.
    """
    fill(_tensors(unet, family, file_format), file)


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Copy a LoRA's file into its tensors, by their names there.

    Raises ValueError if that has other layers or another rank.
    """
    finished = load_file(file)
    if {k: t.shape for k, t in finished.items()} != {k: t.shape for k, t in tensors.items()}:
        raise ValueError(f"{file} is another LoRA")
    for key, tensor in tensors.items():
        tensor.copy_(finished[key])


_MATRICES: dict[Format, tuple[str, str]] = {
    "kohya": ("lora_down", "lora_up"),
    "diffusers": ("lora.down", "lora.up"),
    "peft": ("lora_A", "lora_B"),
}


def _tensors(unet: UNet2DConditionModel, family: str, file_format: Format) -> dict[str, Tensor]:
    """The LoRA's own tensors, by their names in a file."""
    tensors: dict[str, Tensor] = {}
    per_block = int(unet.config.layers_per_block)
    first, second = _MATRICES[file_format]
    for layer, (down, up) in sorted(lora_matrices(unet).items()):
        key = f"unet.{layer}"
        if file_format == "kohya":
            key = kohya_layer(layer, family=family, layers_per_block=per_block)
            tensors[f"{key}.alpha"] = torch.tensor(float(len(down)))
        tensors[f"{key}.{first}.weight"], tensors[f"{key}.{second}.weight"] = down, up
    return tensors
