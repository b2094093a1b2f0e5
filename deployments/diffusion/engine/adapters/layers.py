"""Layers that adapters can act on: what linear layers, convolutions and normalisations become once,
for eager and compiled code.

A layer with adapters computes W x + up (weights * (down x)), where the ranks of all stand one after
the other, and adds weight * term(x) for each of their terms; one without is the plain layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from deployments.diffusion.engine.adapters.changes import Acting, Layer, LowRank, Rescaled

MOST_DIMS = 5  # of what passes through a layer


class Weights(NamedTuple):
    """How strongly each row uses each rank, in a shape that activations can be multiplied by.

    Attributes:
        used: what to multiply by.
        unused: where that is 0, if it is anywhere: there a row gets exactly nothing, even from
            an adapter whose numbers overflow (0 x inf would be NaN).
    """

    used: Tensor
    unused: Tensor | None

    def weigh(self, inner: Tensor) -> Tensor:
        """Weighs activations between the two products, in place."""
        inner.mul_(self.used)
        return inner if self.unused is None else inner.masked_fill_(self.unused, 0)

    def weighed(self, change: Tensor) -> Tensor:
        """What each row gets of a change, of a term that may be the same for all rows."""
        weighed = self.used * change
        return weighed if self.unused is None else weighed.masked_fill_(self.unused, 0)


class Table:
    """The weights of the current call for layers with the same ranks.

    Attributes:
        last: by the number of dimensions of the activations, where ranks stand in the last.
        channels: where ranks stand in the second of four.
    """

    def __init__(self) -> None:
        self.last: tuple[Weights, ...] = ()
        self.channels: Weights | None = None

    def set(self, weights: Tensor, unused: Tensor | None) -> None:
        """Takes (rows, ranks), or (1, ranks) where all rows weigh alike, for the next call."""
        rows, ranks = weights.shape

        def shaped(*shape: int) -> Weights:
            return Weights(weights.view(shape), None if unused is None else unused.view(shape))

        self.last = tuple(shaped(rows, *[1] * (dims - 2), ranks) for dims in range(MOST_DIMS + 1))
        self.channels = shaped(rows, ranks, 1, 1)


class Joined(NamedTuple):
    """`down`, `up`: as in `LowRank`, ranks of all adapters one after the other; of a convolution,
    `up` is (out, ranks, 1, 1)."""

    down: Tensor
    up: Tensor
    table: Table


class Weighed(NamedTuple):
    """A term of one adapter, and the table of that adapter's weights, of one rank."""

    term: Acting
    table: Table


@dataclass(frozen=True)
class Adapters:
    """What acts on one layer."""

    joined: Joined | None
    terms: tuple[Weighed, ...] = ()

    def act(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        """`y`, which the layer made of `x`, with what the terms add to it."""
        total = y
        for term, table in self.terms:
            change = term.act(layer, x, y) if isinstance(term, Rescaled) else term.act(layer, x)
            total = total + table.last[x.ndim].weighed(change)
        return total


class AdaptedLinear(nn.Linear):
    """A linear layer with adapters, or `None`."""

    adapters: Adapters | None = None

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`; rows stand in the first dimension."""
        adapters = self.adapters
        y = F.linear(input, self.weight, self.bias)
        if adapters is None:
            return y
        if adapters.terms:
            y = adapters.act(self, input, y)
        if adapters.joined is not None:
            down, up, table = adapters.joined
            ranks, width = up.shape
            inner = table.last[input.ndim].weigh(F.linear(input, down))
            y.view(-1, width).addmm_(inner.view(-1, ranks), up)
        return y


class AdaptedConv2d(nn.Conv2d):
    """A convolution with adapters, or `None`."""

    adapters: Adapters | None = None

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        adapters = self.adapters
        y = super().forward(input)
        if adapters is None:
            return y
        if adapters.terms:
            y = adapters.act(self, input, y)
        if adapters.joined is not None:
            down, up, table = adapters.joined
            assert table.channels is not None
            inner = F.conv2d(input, down, None, self.stride, self.padding, self.dilation)
            y.add_(F.conv2d(table.channels.weigh(inner), up))
        return y


class AdaptedLayerNorm(nn.LayerNorm):
    """A normalisation with adapters, or `None`."""

    adapters: Adapters | None = None

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.LayerNorm`."""
        y = super().forward(input)
        return y if self.adapters is None else self.adapters.act(self, input, y)


class AdaptedGroupNorm(nn.GroupNorm):
    """A normalisation with adapters, or `None`."""

    adapters: Adapters | None = None

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.GroupNorm`."""
        y = super().forward(input)
        return y if self.adapters is None else self.adapters.act(self, input, y)


Adapted = AdaptedLinear | AdaptedConv2d | AdaptedLayerNorm | AdaptedGroupNorm
_ADAPTED: dict[type[nn.Module], type[Adapted]] = {
    nn.Linear: AdaptedLinear,
    nn.Conv2d: AdaptedConv2d,
    nn.LayerNorm: AdaptedLayerNorm,
    nn.GroupNorm: AdaptedGroupNorm,
}


def adapted(layer: Layer) -> Adapted:
    """The same layer, from now on one that adapters can act on. Raises TypeError for one that
    computes something of its own."""
    if isinstance(layer, Adapted):
        return layer
    if type(layer) not in _ADAPTED:
        raise TypeError(f"adapters cannot act on a {type(layer).__name__}")
    layer.__class__ = _ADAPTED[type(layer)]
    assert isinstance(layer, Adapted)
    layer.adapters = None  # of its own: compiled code looks whether it is
    return layer


def put_on(
    layer: Adapted, low: tuple[LowRank, Table] | None, terms: Sequence[Weighed] = ()
) -> None:
    """Has adapters act on a layer: those of low rank, joined, with their table, and terms."""
    joined = None
    if low is not None:
        ranks, table = low
        up = ranks.up
        if isinstance(layer, AdaptedConv2d):
            up = up.t()[:, :, None, None].contiguous()
        joined = Joined(ranks.down, up, table)
    layer.adapters = Adapters(joined, tuple(terms))
