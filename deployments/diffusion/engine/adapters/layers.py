"""Layers that adapters can act on: what Linear and Conv2d become once, for eager and compiled code.

A layer with adapters computes W x + up (weights * (down x)); one without is the plain layer.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from deployments.diffusion.engine.adapters.reader import LowRank

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


@dataclass(frozen=True)
class Adapters:
    """What acts on one layer. `down`, `up`: as in `LowRank`, ranks of all adapters one after the
    other; of a convolution, `up` is (out, ranks, 1, 1)."""

    down: Tensor
    up: Tensor
    table: Table


class AdaptedLinear(nn.Linear):
    """A linear layer with adapters, or `None`."""

    adapters: Adapters | None = None

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`; rows stand in the first dimension."""
        adapters = self.adapters
        y = F.linear(input, self.weight, self.bias)
        if adapters is None:
            return y
        ranks, width = adapters.up.shape
        inner = adapters.table.last[input.ndim].weigh(F.linear(input, adapters.down))
        y.view(-1, width).addmm_(inner.view(-1, ranks), adapters.up)
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
        weights = adapters.table.channels
        assert weights is not None
        inner = F.conv2d(input, adapters.down, None, self.stride, self.padding, self.dilation)
        return y.add_(F.conv2d(weights.weigh(inner), adapters.up))


Adapted = AdaptedLinear | AdaptedConv2d


def adapted(layer: nn.Linear | nn.Conv2d) -> Adapted:
    """The same layer, from now on one that adapters can act on. Raises TypeError for one that
    computes something of its own."""
    if isinstance(layer, AdaptedLinear | AdaptedConv2d):
        return layer
    if type(layer) not in (nn.Linear, nn.Conv2d):
        raise TypeError(f"adapters cannot act on a {type(layer).__name__}")
    layer.__class__ = AdaptedLinear if isinstance(layer, nn.Linear) else AdaptedConv2d
    assert isinstance(layer, AdaptedLinear | AdaptedConv2d)
    layer.adapters = None  # of its own: compiled code looks whether it is
    return layer


def put_on(layer: Adapted, joined: LowRank, table: Table) -> None:
    """Has adapters act on a layer."""
    up = joined.up
    if isinstance(layer, AdaptedConv2d):
        up = up.t()[:, :, None, None].contiguous()
    layer.adapters = Adapters(joined.down, up, table)
