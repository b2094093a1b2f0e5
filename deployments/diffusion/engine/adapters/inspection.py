"""What an adapter file is, whatever models are at hand: kinds, ranks, numbers, whose it seems."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from deployments.diffusion.engine.adapters.bundled import bundled_words, is_bundled
from deployments.diffusion.engine.adapters.contents import tensors_of
from deployments.diffusion.engine.adapters.files import LoraFile
from deployments.diffusion.engine.adapters.lineage import looks_like
from deployments.diffusion.engine.adapters.names import Role, split

_RANKED = {Role.DOWN, Role.HADA_1B, Role.KRON_1B, Role.KRON_2B}  # as long as their layer's rank


@dataclass(frozen=True)
class Inspection:
    """A file as its names and shapes tell.

    Attributes:
        kinds: how many layers there are of each.
        ranks: that occur, in order; of what has one.
        dtypes: of its numbers.
        nbytes: of its numbers.
        looks_like: a family or a network; `None`: nothing tells.
        words: of textual inversions that it brings along.
        strangers: tensors that are no part of a known adapter.
    """

    kinds: Mapping[str, int]
    ranks: tuple[int, ...]
    dtypes: tuple[str, ...]
    nbytes: int
    looks_like: str | None
    words: tuple[str, ...]
    strangers: tuple[str, ...]


def inspect(file: LoraFile) -> Inspection:
    """Takes a file apart. Raises `LoraError` if it is no safetensors file."""
    tensors, _ = tensors_of(file)
    layers: dict[str, dict[Role, Tensor]] = {}
    strangers: list[str] = []
    for name in sorted(name for name in tensors if not is_bundled(name)):
        parts = split(name)
        if parts is None:
            strangers.append(name)
        else:
            layers.setdefault(parts[0], {})[parts[1]] = tensors[name]
    ranks = {
        len(tensor)
        for parts in layers.values()
        for role, tensor in parts.items()
        if role in _RANKED and tensor.ndim
    }
    return Inspection(
        dict(Counter(kind_of(parts) for parts in layers.values())),
        tuple(sorted(ranks)),
        tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})),
        sum(tensor.nbytes for tensor in tensors.values()),
        looks_like({name: tensor.shape for name, tensor in tensors.items()}),
        tuple(bundled_words(tensors)),
        tuple(strangers),
    )


def kind_of(roles: Collection[Role]) -> str:
    """What the tensors of a layer are together."""
    kind = _inner_kind(roles)
    return f"DoRA of {kind}" if {Role.MAGNITUDE, Role.DORA_SCALE} & set(roles) else kind


def _inner_kind(roles: Collection[Role]) -> str:
    if Role.MID in roles:
        return "LoCon with a middle layer"
    if Role.DOWN in roles or Role.UP in roles:
        return "LoRA"
    if any(role.value.startswith("hada_") for role in roles):
        return "LoHa"
    if any(role.value.startswith("lokr_") for role in roles):
        return "LoKr"
    if Role.WEIGHT in roles or Role.BIAS in roles:
        return "full difference"
    return "nothing"
