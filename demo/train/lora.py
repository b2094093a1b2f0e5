"""LoRAs on a UNet in training, and their files in the formats that `demo.lora` lists."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.kohya import kohya_layer
from demo.lora import Format

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
    """The down and up weights by layer, on the CPU."""
    matrices: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in unet.named_modules():
        if ADAPTER in getattr(module, "lora_A", {}):
            down, up = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
            matrices[name] = (down.detach().cpu(), up.detach().cpu())
    return matrices


def save_lora(unet: UNet2DConditionModel, family: str, file_format: Format, file: Path) -> None:
    """Write the LoRA of a UNet of `family` in half precision."""
    tensors: dict[str, Tensor] = {}
    per_block = int(unet.config.layers_per_block)
    for layer, (down, up) in sorted(lora_matrices(unet).items()):
        if file_format == "kohya":
            key = kohya_layer(layer, family=family, layers_per_block=per_block)
            tensors[f"{key}.lora_down.weight"] = down
            tensors[f"{key}.lora_up.weight"] = up
            tensors[f"{key}.alpha"] = torch.tensor(float(len(down)))
        else:
            first, second = ("lora_A", "lora_B") if file_format == "peft" else _DIFFUSERS
            tensors[f"unet.{layer}.{first}.weight"] = down
            tensors[f"unet.{layer}.{second}.weight"] = up
    halves = {key: tensor.half().contiguous() for key, tensor in tensors.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, file, metadata={"format": "pt"})


_DIFFUSERS = ("lora.down", "lora.up")
