"""Writes random LoRAs that fit a base folder, in the formats found on the hub."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from demo.init import generator
from demo.kohya import kohya_layer

# kohya: lora_unet_a_b.lora_down.weight, .lora_up.weight, .alpha
# diffusers: unet.a.b.lora.down.weight; text_encoder.a.b.lora_linear_layer.down.weight
# peft: unet.a.b.lora_A.weight, .lora_B.weight
Format = Literal["kohya", "diffusers", "peft"]

ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
TRANSFORMER = (*ATTENTION, ".proj_in", ".proj_out", ".ff.net.0.proj", ".ff.net.2")
CONVOLUTION = (".conv1", ".conv2", ".conv_shortcut", "samplers.0.conv")
TIME_EMBEDDING = (".time_emb_proj", "time_embedding.linear_1", "time_embedding.linear_2")
TEXT_ATTENTION = (".q_proj", ".k_proj", ".v_proj", ".out_proj")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class LoraRecipe:
    """What a LoRA touches and how much.

    `strength` is the size of its change to a layer's output, for an input of unit variance
    at weight 1. `alpha` is written by kohya's format alone; the others mean alpha = rank.
    """

    format: Format
    rank: int
    strength: float
    unet_layers: tuple[str, ...]
    text_layers: tuple[str, ...] = ()
    alpha: float | None = None

    @property
    def effective_alpha(self) -> float:
        """The alpha that a loader takes for the file."""
        return float(self.rank) if self.alpha is None else self.alpha


class Layer(NamedTuple):
    """A linear or convolution layer of a base: its module name and weight shape."""

    name: str
    shape: tuple[int, ...]


TCD_LAYERS = TRANSFORMER + CONVOLUTION + TIME_EMBEDDING
TCD = {
    "sd15": LoraRecipe("kohya", 4, 0.05, TCD_LAYERS, alpha=4.0),
    "sd21": LoraRecipe("peft", 4, 0.05, TCD_LAYERS),
    "sdxl": LoraRecipe("peft", 4, 0.05, TCD_LAYERS),
}
STYLES = {
    "papercut": LoraRecipe("kohya", 4, 0.12, ATTENTION + CONVOLUTION, alpha=2.0),
    "ink": LoraRecipe("diffusers", 8, 0.3, ATTENTION, TEXT_ATTENTION),
    "neon": LoraRecipe("peft", 6, 0.1, ATTENTION + CONVOLUTION + TIME_EMBEDDING),
}


def write_tcd_lora(family: str, base_folder: Path, file: Path) -> None:
    """Write the TCD-LoRA stand-in of `family`, for the base in `base_folder`."""
    if family not in TCD:
        raise ValueError(f"family must be one of {', '.join(TCD)}, not {family!r}")
    source = generator("tcd-lora", family)
    write_lora(TCD[family], family, base_folder, file, source)


def write_style_lora(
    name: str, family: str, base_folder: Path, file: Path, *, seed: int = 0
) -> None:
    """Write the style LoRA `name` (one of `STYLES`) of `family`, for the base in `base_folder`.

    Another `seed` gives another LoRA of the same kind.
    """
    if name not in STYLES:
        raise ValueError(f"name must be one of {', '.join(STYLES)}, not {name!r}")
    source = generator("style-lora", name, family, seed)
    write_lora(STYLES[name], family, base_folder, file, source)


def write_lora(
    recipe: LoraRecipe, family: str, base_folder: Path, file: Path, source: torch.Generator
) -> None:
    """Draw the LoRA's matrices from `source` and write them to `file`."""
    config = json.loads((base_folder / "unet" / "config.json").read_text(encoding="utf-8"))
    tensors: dict[str, torch.Tensor] = {}
    weights = base_folder / "unet" / "diffusion_pytorch_model.safetensors"
    for layer in layers(weights, recipe.unet_layers):
        down, up = matrices(layer, recipe, source)
        if recipe.format == "kohya":
            key = kohya_layer(
                layer.name, family=family, layers_per_block=config["layers_per_block"]
            )
            tensors[f"{key}.lora_down.weight"] = down
            tensors[f"{key}.lora_up.weight"] = up
            tensors[f"{key}.alpha"] = torch.tensor(recipe.effective_alpha)
        else:
            first, second = (
                ("lora_A", "lora_B") if recipe.format == "peft" else ("lora.down", "lora.up")
            )
            tensors[f"unet.{layer.name}.{first}.weight"] = down
            tensors[f"unet.{layer.name}.{second}.weight"] = up
    for encoder in TEXT_ENCODERS:
        weights = base_folder / encoder / "model.safetensors"
        if not recipe.text_layers or not weights.exists():
            continue
        for layer in layers(weights, recipe.text_layers):
            down, up = matrices(layer, recipe, source)
            tensors[f"{encoder}.{layer.name}.lora_linear_layer.down.weight"] = down
            tensors[f"{encoder}.{layer.name}.lora_linear_layer.up.weight"] = up
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt"})


def layers(weights: Path, endings: tuple[str, ...]) -> Iterator[Layer]:
    """The layers in a safetensors file whose names end with one of `endings`, sorted."""
    with safe_open(weights, "pt") as tensors:
        for key in sorted(tensors.keys()):
            name = key.removesuffix(".weight")
            if name != key and name.endswith(endings):
                yield Layer(name, tuple(tensors.get_slice(key).get_shape()))


def matrices(
    layer: Layer, recipe: LoraRecipe, source: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The down and up weights of one layer; those of a convolution have four dimensions."""
    width, fan_in, *kernel = layer.shape
    down = torch.empty(recipe.rank, fan_in, *kernel)
    up = torch.empty(width, recipe.rank, *(1 for _ in kernel))
    down.normal_(std=down[0].numel() ** -0.5, generator=source)
    # The loaders multiply up @ down by alpha / rank.
    up.normal_(std=recipe.strength * recipe.rank**0.5 / recipe.effective_alpha, generator=source)
    return down, up
