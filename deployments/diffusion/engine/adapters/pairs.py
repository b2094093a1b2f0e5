"""The layers of adapter files: pairs of matrices, each with its own alpha / rank.

A file that is broken, of another family or of another kind is refused here, with its reason.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from deployments.diffusion.engine.adapters.alphas import Alphas, recorded_alphas
from deployments.diffusion.engine.adapters.files import LoraError, LoraFile
from deployments.diffusion.engine.adapters.names import (
    PEFT_PREFIX,
    Names,
    Place,
    Role,
    adaptable,
    split,
)

_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "lora_mid": "LoCon with a middle layer",
    ".bias": "LoRA with biases",
}


@dataclass(frozen=True)
class Pair:
    """One layer's matrices as the file has them, in any floating dtype.

    Attributes:
        down: (rank, in) or (rank, in, kh, kw), as the layer is linear or a convolution.
        up: (out, rank).
        scale: alpha / rank, by which the change is to be multiplied.
    """

    place: Place
    down: Tensor
    up: Tensor
    scale: float


class Pairs:
    """Finds the layers of adapter files in one checkpoint. Several threads may ask at once.

    Args:
        models: by name: "unet", "text_encoder", for sdxl "text_encoder_2", and "motion_unet"
            where there is one. Only names and shapes of their layers are kept.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._names = Names(models)
        self._shapes = {
            Place(name, layer): module.weight.shape
            for name, model in models.items()
            for layer, module in adaptable(model)
        }

    def of(self, file: LoraFile, unet: str = "unet") -> list[Pair]:
        """The layers of an adapter: their shapes are checked, their numbers are yet to be read.

        Args:
            unet: which UNet it goes to, "unet" or "motion_unet".

        Raises `LoraError` for anything but a plain LoRA of this family.
        """
        try:
            tensors = load(file.content)
            header = _metadata(file.content)
        except (SafetensorError, ValueError) as error:
            raise LoraError(f"{file.name} is not a readable safetensors file ({error})") from error
        names = sorted(tensors)
        layers = {
            place: {role: tensors[name] for role, name in parts.items()}
            for place, parts in self._places(file, names, unet).items()
        }
        alphas = Alphas({})
        if any(Role.ALPHA not in parts for parts in layers.values()):
            peft = any(name.startswith(PEFT_PREFIX) for name in names)
            try:
                alphas = recorded_alphas(file.described if peft else None, header)
            except ValueError as error:
                raise LoraError(f"what {file.name} says of alpha cannot be read") from error
        return [self._pair(file, place, parts, alphas) for place, parts in layers.items()]

    def _places(self, file: LoraFile, names: list[str], unet: str) -> dict[Place, dict[Role, str]]:
        """Each layer's tensors, by name."""
        layers: dict[Place, dict[Role, str]] = {}
        strangers: list[str] = []
        for name in names:
            found = self._names.find(name, unet)
            if found is None:
                strangers.append(name)
                continue
            place, role = found
            parts = layers.setdefault(place, {})
            if role in parts:
                raise LoraError(f"{file.name} has a layer twice: {parts[role]!r} is {name!r}")
            parts[role] = name
        if strangers or not any(Role.DOWN in parts for parts in layers.values()):
            raise _refusal(file, names, strangers)
        return layers

    def _pair(
        self, file: LoraFile, place: Place, parts: Mapping[Role, Tensor], alphas: Alphas
    ) -> Pair:
        def misfit(why: str) -> LoraError:
            return LoraError(
                f"{file.name} does not fit this model; is it of another family? "
                f"({place.model}.{place.module}: {why})"
            )

        for role in (Role.DOWN, Role.UP):
            if role not in parts:
                raise misfit(f"no {role.value}")
        down, up, alpha = parts[Role.DOWN], parts[Role.UP], parts.get(Role.ALPHA)
        if not (down.is_floating_point() and up.is_floating_point()):
            raise misfit(f"numbers in {down.dtype} and {up.dtype}")
        width, *fan_in = self._shapes[place]
        rank = len(down) if down.ndim else 0
        if (
            rank == 0
            or _without_kernel(down.shape) != _without_kernel((rank, *fan_in))
            or _without_kernel(up.shape) != (width, rank)
        ):
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise misfit(f"{shapes} for a layer of {(width, *fan_in)}")
        if alpha is None:
            scale = alphas.scale(place, rank)
        elif alpha.numel() == 1:
            scale = alpha.item() / rank
        else:
            raise misfit(f"{alpha.numel()} numbers as alpha")
        return Pair(place, down.view(rank, *fan_in), up.view(width, rank), scale)


def _metadata(content: bytes) -> dict[str, str]:
    """What a safetensors file says of itself: eight bytes are the length of its JSON header."""
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return found


def check_finite(numbers: Tensor, file: LoraFile) -> None:
    """Raises `LoraError` if what was made of a file is not finite."""
    extremes = torch.stack(numbers.aminmax())
    if not extremes.isfinite().all():
        raise LoraError(f"{file.name} holds numbers that are not finite in {numbers.dtype}")


def _refusal(file: LoraFile, names: Sequence[str], strangers: Sequence[str]) -> LoraError:
    """Why a file is not read of whose tensors some belong to no layer, or all."""
    for mark, kind in _OTHER_KINDS.items():
        if any(mark in name for name in strangers):
            return LoraError(f"{file.name} is {kind}; only plain LoRA can be mixed row by row")
    parts = {name: split(name) for name in names}
    if not any(part is not None and part[1] is Role.DOWN for part in parts.values()):
        return LoraError(f"{file.name} holds no LoRA weights")
    for name in strangers:
        if parts[name] is None:
            return LoraError(f"{file.name} holds {name!r}, which is no part of a plain LoRA")
    layers = {part[0] for part in parts.values() if part is not None}
    lacking = dict.fromkeys(part[0] for n in strangers if (part := parts[n]) is not None)
    return LoraError(
        f"{file.name} adapts {len(layers)} layers, {len(lacking)} of which this model lacks "
        f"({next(iter(lacking))!r} for one); is it of another family?"
    )


def _without_kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A linear layer and a convolution of 1 x 1 are the same product."""
    return shape[:2] if shape[2:] == (1, 1) else shape
