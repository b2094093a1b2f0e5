"""Models out of single files: every tensor finds its place and every place its tensor, or the file
is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from deployments.diffusion.engine.models.checkpoints.conversion import (
    Tensors,
    text_tensors,
    unet_tensors,
    vae_tensors,
)
from deployments.diffusion.engine.models.checkpoints.header import WrongFile
from deployments.diffusion.engine.models.checkpoints.identity import PREFIXES, Part

Config = Mapping[str, object]
Model = TypeVar("Model", bound=nn.Module)
TextEncoder = type[CLIPTextModel] | type[CLIPTextModelWithProjection]


def read_unet(file: Path, config: Config, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet of a checkpoint, on the CPU.

    Args:
        config: of diffusers' UNet; its `in_channels` is the file's.
    """
    tensors = read_part(file, "unet")
    config = {**config, "in_channels": tensors["input_blocks.0.0.weight"].shape[1]}
    with init_empty_weights():
        model: UNet2DConditionModel = UNet2DConditionModel.from_config(config)
    return _filled(model, _placed_unet(tensors, model), dtype)


def read_vae_part(file: Path, config: Config, dtype: torch.dtype) -> AutoencoderKL:
    """The VAE of a checkpoint, or of a file of its own, on the CPU."""
    with init_empty_weights():
        model: AutoencoderKL = AutoencoderKL.from_config(config)
    return _filled(model, _placed_vae(read_part(file, "vae"), model), dtype)


def read_text_encoder(
    file: Path, part: Part, kind: TextEncoder, config: CLIPTextConfig, dtype: torch.dtype
) -> nn.Module:
    """A text encoder of a checkpoint, on the CPU."""
    with init_empty_weights():
        model: nn.Module = kind(config)
    tensors = _placed_text(read_part(file, part), model, part, int(config.num_hidden_layers))
    return _filled(model, tensors, dtype)


def read_part(file: Path, part: Part) -> dict[str, Tensor]:
    """The tensors of a checkpoint's part, or of a file that is this part alone, by their names in
    it, mapped from the disk. Averaged weights (`model_ema.`) are of no part."""
    with safe_open(file, framework="pt") as opened:
        names: list[str] = list(opened.keys())
        return {short: opened.get_tensor(name) for short, name in _of_part(names, part).items()}


def _of_part(names: list[str], part: Part) -> dict[str, str]:
    """Names in a part to names in the file."""
    for prefix in PREFIXES[part]:
        found = {n.removeprefix(prefix): n for n in names if n.startswith(prefix)}
        if found:
            return found
    return {name: name for name in names}


def _placed_unet(tensors: Tensors, model: UNet2DConditionModel) -> dict[str, Tensor]:
    """The tensors of a UNet's part by the names of its model. Raises `WrongFile` if one of either
    is left over."""
    placed = unet_tensors(tensors, model.config)
    if len(placed) < len(tensors):
        kept = {id(tensor) for tensor in placed.values()}
        lost = next(name for name, tensor in tensors.items() if id(tensor) not in kept)
        raise _homeless("unet", lost)
    return _placed(placed, model, "unet")


def _placed_vae(tensors: Tensors, model: AutoencoderKL) -> dict[str, Tensor]:
    """The same of a VAE."""
    return _placed(vae_tensors(tensors, model.config), model, "vae")


def _placed_text(tensors: Tensors, model: nn.Module, part: Part, layers: int) -> dict[str, Tensor]:
    """The same of a text encoder of so many layers."""
    names = model.state_dict().keys()
    inner = "text_model." if any(name.startswith("text_model.") for name in names) else ""
    placed: dict[str, Tensor] = {}
    for name, tensor in text_tensors(tensors, layers).items():
        if not name.startswith("text_projection"):
            placed[inner + name] = tensor
        elif name in names:  # a family's first encoder, and SD 2's only one, have none
            placed[name] = tensor
    return _placed(placed, model, part)


def _placed(tensors: Tensors, model: nn.Module, part: Part) -> dict[str, Tensor]:
    """Each tensor in its place's shape: what is written as a 1 x 1 convolution may be a matrix, and
    the reverse."""
    places = model.state_dict()
    strange = sorted(tensors.keys() - places.keys())
    if strange:
        raise _homeless(part, strange[0])
    lacking = sorted(places.keys() - tensors.keys())
    if lacking:
        raise WrongFile(f"its {part} lacks {len(lacking)} tensors ({lacking[0]!r} for one)")
    found: dict[str, Tensor] = {}
    for name, place in places.items():
        tensor = tensors[name]
        if tensor.shape != place.shape and _trimmed(tensor) != _trimmed(place):
            raise WrongFile(
                f"its {part} has {name!r} of shape {tuple(tensor.shape)}; that of the "
                f"configuration is {tuple(place.shape)}"
            )
        found[name] = tensor.reshape(place.shape)
    return found


def _homeless(part: Part, name: str) -> WrongFile:
    return WrongFile(f"its {part} has {name!r}, for which this family's has no place")


def _trimmed(tensor: Tensor) -> tuple[int, ...]:
    """A shape without the sides of a 1 x 1 kernel."""
    shape = tuple(tensor.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _filled(model: Model, tensors: Tensors, dtype: torch.dtype) -> Model:
    numbers = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    model.load_state_dict(numbers, assign=True)
    return model.eval()
