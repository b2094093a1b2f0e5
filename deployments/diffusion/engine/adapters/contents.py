"""What stands in adapter files: for each layer, the change that they ask for.

A file that is broken, of another family or of a kind that cannot be mixed is refused here, with
its reason.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from deployments.diffusion.engine.adapters.alphas import Alphas, recorded_alphas
from deployments.diffusion.engine.adapters.bundled import bundled_words, is_bundled
from deployments.diffusion.engine.adapters.changes import Change
from deployments.diffusion.engine.adapters.files import LoraError, LoraFile
from deployments.diffusion.engine.adapters.kinds import (
    Misfit,
    change_of_layer,
    change_of_norm,
)
from deployments.diffusion.engine.adapters.lineage import looks_like
from deployments.diffusion.engine.adapters.names import (
    PEFT_PREFIX,
    Names,
    Place,
    Role,
    adaptable,
    norms,
    split,
)

# What other kinds are known by. They change weights by products with them, which no sum over
# rows can mix, or belong to other networks.
_OTHER_KINDS = {
    "boft_": "BOFT",
    "oft_": "OFT",
    "on_input": "IA3",
    "ia3_": "IA3",
    ".a1.weight": "GLoRA",
    "set_weight": "a replacement of weights",
}


class Contents:
    """Finds the layers of adapter files in one checkpoint. Several threads may ask at once.

    Args:
        models: by name: "unet", "text_encoder", for sdxl "text_encoder_2", and "motion_unet"
            where there is one. Only names and shapes of their layers are kept.
        words: that prompts have vectors for, in any case: of those that files bring along no
            others are taken. `None`: whatever they bring.
    """

    def __init__(self, models: Mapping[str, nn.Module], words: Collection[str] | None = ()) -> None:
        self._words = None if words is None else {word.lower() for word in words}
        self._names = Names(models)
        self._layers = {
            Place(name, layer): module.weight.shape
            for name, model in models.items()
            for layer, module in adaptable(model)
        }
        self._norms = {
            Place(name, layer): module.weight.shape
            for name, model in models.items()
            for layer, module in norms(model)
        }

    def of(self, file: LoraFile, unet: str = "unet") -> dict[Place, Change]:
        """What an adapter does to each layer that it adapts: shapes are checked; numbers are those
        of the file wherever they can be, in any floating dtype.

        Args:
            unet: which UNet it goes to, "unet" or "motion_unet".

        Raises `LoraError` for anything but an adapter of this family of a kind that is known.
        """
        tensors, header = tensors_of(file)
        self._check_words(file, tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if not is_bundled(name)}
        layers = {
            place: {role: tensors[name] for role, name in parts.items()}
            for place, parts in self._places(file, tensors, unet).items()
        }
        alphas = Alphas({})
        if any(Role.ALPHA not in parts for parts in layers.values()):
            peft = any(name.startswith(PEFT_PREFIX) for name in tensors)
            try:
                alphas = recorded_alphas(file.described if peft else None, header)
            except ValueError as error:
                raise LoraError(f"what {file.name} says of alpha cannot be read") from error
        changes: dict[Place, Change] = {}
        for place, parts in layers.items():
            try:
                changes[place] = self._change(place, parts, alphas)
            except TimeoutError as error:
                raise LoraError(f"what {file.name} says of alpha takes too long to read") from error
            except (Misfit, RuntimeError, IndexError, TypeError) as error:  # odd shapes, in torch
                raise LoraError(
                    f"{file.name} does not fit this model; {_kin(tensors)} "
                    f"({place.model}.{place.module}: {error})"
                ) from error
        return changes

    def _check_words(self, file: LoraFile, names: Collection[str]) -> None:
        """Raises `LoraError` if prompts could not use a word that the file brings along."""
        for word in bundled_words(names):
            if self._words is not None and word.lower() not in self._words:
                raise LoraError(
                    f"{file.name} brings along the word {word!r}, which prompts cannot use: name "
                    f"the file in the model's embeddings too, as {word!r}"
                )

    def _places(
        self, file: LoraFile, tensors: Mapping[str, Tensor], unet: str
    ) -> dict[Place, dict[Role, str]]:
        """Each layer's tensors, by name."""
        layers: dict[Place, dict[Role, str]] = {}
        strangers: list[str] = []
        for name in sorted(tensors):
            found = self._names.find(name, unet)
            if found is None:
                strangers.append(name)
                continue
            place, role = found
            parts = layers.setdefault(place, {})
            if role in parts:
                raise LoraError(f"{file.name} has a layer twice: {parts[role]!r} is {name!r}")
            parts[role] = name
        if strangers or not layers:
            raise _refusal(file, tensors, strangers)
        return layers

    def _change(self, place: Place, parts: Mapping[Role, Tensor], alphas: Alphas) -> Change:
        if place in self._norms:
            return change_of_norm(parts, self._norms[place])
        return change_of_layer(parts, self._layers[place], partial(alphas.scale, place))


def tensors_of(file: LoraFile) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors by name, and what it says of itself. Raises `LoraError`."""
    try:
        return load(file.content), _metadata(file.content)
    except (SafetensorError, ValueError) as error:
        raise LoraError(f"{file.name} is not a readable safetensors file ({error})") from error
    except KeyError as error:  # a type of numbers that safetensors has and torch has not
        raise LoraError(f"{file.name} holds numbers of a type that is not read: {error}") from error


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


def _refusal(file: LoraFile, tensors: Mapping[str, Tensor], strangers: Sequence[str]) -> LoraError:
    """Why a file is not read of whose tensors some belong to no layer, or all."""
    for mark, kind in _OTHER_KINDS.items():
        if any(mark in name for name in strangers):
            return LoraError(f"{file.name} is {kind}, which cannot be mixed row by row")
    parts = {name: split(name) for name in tensors}
    if not any(part is not None and part[1] is not Role.ALPHA for part in parts.values()):
        return LoraError(f"{file.name} holds no adapter's weights")
    for name in strangers:
        if parts[name] is None:
            return LoraError(f"{file.name} holds {name!r}, which is no part of a known adapter")
    layers = {part[0] for part in parts.values() if part is not None}
    lacking = dict.fromkeys(part[0] for n in strangers if (part := parts[n]) is not None)
    return LoraError(
        f"{file.name} adapts {len(layers)} layers, {len(lacking)} of which this model lacks "
        f"({next(iter(lacking))!r} for one); {_kin(tensors)}"
    )


def _kin(tensors: Mapping[str, Tensor]) -> str:
    """Of which models a file seems to be."""
    kin = looks_like({name: tensor.shape for name, tensor in tensors.items()})
    return "is it of another family?" if kin is None else f"it looks like one for {kin}"
