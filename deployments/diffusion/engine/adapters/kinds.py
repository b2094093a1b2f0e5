"""The kinds of adapters: what the tensors of a layer say is to be done to it.

LoRA and LoCon (with a middle layer too), LoHa, LoKr, full differences, DoRA around any of them,
biases, and differences of normalisations. Formulas are those of LyCORIS and PEFT.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from deployments.diffusion.engine.adapters.changes import (
    Along,
    Bias,
    Change,
    Decomposed,
    Dense,
    Difference,
    Hada,
    Kron,
    LowRank,
    Shift,
    Term,
)
from deployments.diffusion.engine.adapters.names import Role

Parts = Mapping[Role, Tensor]  # of one layer
# By which the change of a layer of this rank is multiplied; `None`: it shows none.
Scale = Callable[[int | None], float]

# torch spreads what is larger over threads, and waits for them: on busy cores that is tens of
# times slower than one thread (10 to 20 s, not 0.3, for a full SDXL adapter on two cores).
PIECE = 32767

MOST_RANKS = 64  # of a LoHa that is multiplied out
_HADA = (Role.HADA_1A, Role.HADA_1B, Role.HADA_2A, Role.HADA_2B)
_KRON = (Role.KRON_1, Role.KRON_1A, Role.KRON_1B, Role.KRON_2, Role.KRON_2A, Role.KRON_2B)


class Misfit(ValueError):
    """Why a layer's tensors say nothing that can be done to it."""


def change_of_norm(parts: Parts, shape: torch.Size) -> Change:
    """What the tensors of a normalisation say. Raises `Misfit`.

    Args:
        shape: of its weight.
    """
    left = _Left(parts)
    weight, bias = (left.pop(role, shape) for role in (Role.WEIGHT, Role.BIAS))
    left.done()
    like = bias if weight is None else weight
    if like is None:
        raise Misfit("nothing but an alpha")
    weight, bias = (torch.zeros_like(like) if one is None else one for one in (weight, bias))
    return Change(terms=(Shift(weight, bias),))


def change_of_layer(parts: Parts, shape: torch.Size, recorded: Scale) -> Change:
    """What the tensors of a linear layer or a convolution say. Raises `Misfit`.

    Args:
        shape: of the layer's weight.
        recorded: the scale of a layer without an alpha among its tensors.
    """
    left = _Left(parts)
    alpha = left.pop(Role.ALPHA, ())
    scale = recorded if alpha is None else partial(_alpha_by_rank, alpha.item())
    bias, up_bias = (left.pop(role, shape[:1]) for role in (Role.BIAS, Role.UP_BIAS))
    magnitude, dora_scale = (left.pop(role) for role in (Role.MAGNITUDE, Role.DORA_SCALE))
    terms: list[Term] = [] if bias is None else [Bias(bias)]
    if up_bias is not None:
        terms.append(Bias(_scaled(up_bias, scale(len(left[Role.DOWN])))))
    difference = _difference(left, shape, scale)
    left.done()
    low = None
    if magnitude is not None:
        terms.append(_decomposed(difference, magnitude, shape, "outputs"))
    elif dora_scale is not None:
        along: Along = "outputs" if len(dora_scale) == shape[0] else "inputs"
        terms.append(_decomposed(difference, dora_scale, shape, along))
    elif isinstance(difference, LowRank):
        low = difference
    elif difference is not None:
        terms.append(difference)
    if low is None and not terms:
        raise Misfit("nothing but an alpha")
    return Change(low, tuple(terms))


class _Left:
    """A layer's tensors that nobody has read yet. Raises `Misfit` where one is not as it should."""

    def __init__(self, parts: Mapping[Role, Tensor]) -> None:
        for role, tensor in parts.items():
            if not tensor.is_floating_point() and role is not Role.ALPHA:
                raise Misfit(f"{role.value} has numbers in {tensor.dtype}")
            if tensor.numel() == 0:
                raise Misfit(f"{role.value} is empty")
        self._parts = dict(parts)

    def __contains__(self, role: Role) -> bool:
        return role in self._parts

    def __getitem__(self, role: Role) -> Tensor:
        if role not in self._parts:
            raise Misfit(f"no {role.value}")
        return self._parts[role]

    def pop(self, role: Role, shape: Sequence[int] | None = None) -> Tensor | None:
        """A tensor, if there is one, in the shape that it must have but for dimensions of 1."""
        tensor = self._parts.pop(role, None)
        return tensor if tensor is None or shape is None else _shaped(tensor, role, shape)

    def take(self, role: Role) -> Tensor:
        """A tensor that must be there."""
        tensor = self[role]
        del self._parts[role]
        return tensor

    def done(self) -> None:
        """Nothing must be left."""
        for role in self._parts:
            raise Misfit(f"{role.value} beside what does not go with it")


def _difference(left: _Left, shape: torch.Size, scale: Scale) -> Difference | None:
    if Role.DOWN in left or Role.UP in left:
        return _lora(left, shape, scale)
    if any(role in left for role in _HADA):
        return _loha(left, shape, scale)
    if any(role in left for role in _KRON):
        return _lokr(left, shape, scale)
    weight = left.pop(Role.WEIGHT, shape)
    return None if weight is None else Dense(weight)


def _lora(left: _Left, shape: torch.Size, scale: Scale) -> LowRank:
    down, up = left.take(Role.DOWN), left.take(Role.UP)
    mid = left.pop(Role.MID)
    width, *fan_in = shape
    rank = len(down) if down.ndim else 0
    if mid is not None:
        if mid.shape != (rank, rank, *fan_in[1:]) or down.numel() != rank * fan_in[0]:
            shapes = f"{tuple(down.shape)} and {tuple(mid.shape)}"
            raise Misfit(f"{shapes} for a layer of {tuple(shape)}")
        down = torch.einsum("ij...,jp->ip...", mid.float(), down.float().view(rank, -1))
    if (
        rank == 0
        or _without_kernel(down.shape) != _without_kernel((rank, *fan_in))
        or _without_kernel(up.shape) != (width, rank)
    ):
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise Misfit(f"{shapes} for a layer of {tuple(shape)}")
    return LowRank(down.view(rank, *fan_in), _scaled(up.view(width, rank), scale(rank)).t())


def _loha(left: _Left, shape: torch.Size, scale: Scale) -> LowRank | Hada:
    """(w1_a @ w1_b) * (w2_a @ w2_b), number by number. Its rank is r1 * r2: where that is small,
    two matrices of so many ranks are the same, and stand beside those of others."""
    up1, down1 = _hada(left, Role.HADA_1A, Role.HADA_1B, Role.HADA_1T, shape)
    up2, down2 = _hada(left, Role.HADA_2A, Role.HADA_2B, Role.HADA_2T, shape)
    factor = scale(up1.shape[1])
    width = len(up1)
    ranks = up1.shape[1] * up2.shape[1]
    if ranks > MOST_RANKS:
        down1, down2 = down1.view(-1, *shape[1:]), down2.view(-1, *shape[1:])
        return Hada(*_balanced(up1 * factor, down1), *_balanced(up2, down2))
    up = (up1[:, :, None] * up2[:, None, :]).view(width, ranks).mul_(factor)
    down = (down1[:, None, :] * down2[None, :, :]).view(ranks, *shape[1:])
    return LowRank(*_balanced(down, up.t()))


def _hada(left: _Left, a: Role, b: Role, t: Role, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """(out, rank) and (rank, in * kh * kw) of one of LoHa's two factors, in float32."""
    up, down, core = left.take(a).float(), left.take(b).float(), left.pop(t)
    if core is not None:  # Tucker's form: (rank, rank, kh, kw), and `up` is transposed
        if core.shape[:2] != (len(up), len(down)):
            raise Misfit(f"{a.value} of {tuple(up.shape)} and {t.value} of {tuple(core.shape)}")
        up, down = up.t(), torch.einsum("ij...,jp->ip...", core.float(), down)
    up, down = up.flatten(1), down.flatten(1)
    if up.shape[1] != len(down) or (len(up), down.shape[1]) != (shape[0], shape[1:].numel()):
        shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise Misfit(f"{shapes} as {a.value} and {b.value} for a layer of {tuple(shape)}")
    return up, down


def _lokr(left: _Left, shape: torch.Size, scale: Scale) -> Kron:
    """w1 (x) w2, each whole or a product; with both whole, alpha is said to be the rank."""
    ranks = [len(left[role]) for role in (Role.KRON_1B, Role.KRON_2B) if role in left]
    if Role.KRON_1 in left:
        one = left.take(Role.KRON_1).float()
    else:
        one = left.take(Role.KRON_1A).float() @ left.take(Role.KRON_1B).float()
    core = left.pop(Role.KRON_2T)
    if Role.KRON_2 in left:
        two = left.take(Role.KRON_2).float()
    else:
        up, down = left.take(Role.KRON_2A).float(), left.take(Role.KRON_2B).float()
        if core is not None:
            up, down = up.t(), torch.einsum("ij...,jp->ip...", core.float(), down)
        two = (up @ down.flatten(1)).view(len(up), -1, *shape[2:])
    misfit = Misfit(f"{tuple(one.shape)} by {tuple(two.shape)} for a layer of {tuple(shape)}")
    if one.ndim != 2 or two.ndim < 2:
        raise misfit
    whole = (len(one) * len(two), one.shape[1] * two.shape[1], *two.shape[2:])
    if _without_kernel(whole) != _without_kernel(shape):
        raise misfit
    one = one * scale(ranks[0] if ranks else None)
    return Kron(*_balanced(one, two.reshape(*two.shape[:2], *shape[2:])))


def _decomposed(
    difference: Difference | None, magnitude: Tensor, shape: torch.Size, along: Along
) -> Decomposed:
    if difference is None:
        raise Misfit("a magnitude of nothing")
    count = shape[0] if along == "outputs" else shape[1]
    if magnitude.numel() != count:
        raise Misfit(f"{magnitude.numel()} magnitudes for a layer of {tuple(shape)}")
    return Decomposed(difference, magnitude.reshape(count), along)


def _alpha_by_rank(alpha: float, rank: int | None) -> float:
    return 1.0 if rank is None else alpha / rank


def _scaled(matrix: Tensor, factor: float) -> Tensor:
    """factor * matrix, not rounded."""
    if factor == 1:
        return matrix
    scaled = torch.empty_like(matrix, dtype=torch.float32)
    pieces = zip(matrix.view(-1).split(PIECE), scaled.view(-1).split(PIECE), strict=True)
    for piece, to in pieces:
        torch.mul(piece.float(), factor, out=to)
    return scaled


def _balanced(some: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of a product, made equally large: neither leaves what half precision holds."""
    largest, other = some.abs().max().item(), others.abs().max().item()
    if not 0 < largest * other < math.inf:
        return some, others
    factor = math.sqrt(other / largest)
    return some * factor, others / factor


def _shaped(tensor: Tensor, role: Role, shape: Sequence[int]) -> Tensor:
    """A tensor in the shape that it must have, but for dimensions of 1."""
    if [n for n in tensor.shape if n != 1] != [n for n in shape if n != 1]:
        raise Misfit(f"{tuple(tensor.shape)} as {role.value} of a layer of {tuple(shape)}")
    return tensor.reshape(tuple(shape))


def _without_kernel(shape: Sequence[int]) -> Sequence[int]:
    """A linear layer may be written as a convolution of 1 x 1, and the reverse."""
    return shape[:-2] if len(shape) == 4 and tuple(shape[2:]) == (1, 1) else tuple(shape)
