"""What an adapter does to a layer, in forms that act row by row: y + weight * change(x).

A layer computes y = W x + b. Of all forms only a full difference is kept as large as W.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d | nn.LayerNorm | nn.GroupNorm  # that adapters act on
NOTHING = 1e-7  # a norm that is rounding
New = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LowRank:
    """up.T @ down (LoRA, LoCon; LoHa of low ranks).

    Attributes:
        down: (rank, in) of a linear layer, (rank, in, kh, kw) of a convolution.
        up: (rank, out), transposed; alpha / rank is in it.
    """

    down: Tensor
    up: Tensor

    def mapped(self, new: New) -> Self:
        """The same of other tensors."""
        return type(self)(new(self.down), new(self.up))

    def dense(self) -> Tensor:
        """(out, in * kh * kw) float32: what is added to W at weight 1."""
        return self.up.float().t() @ self.down.float().flatten(1)

    def act(self, layer: Layer, x: Tensor) -> Tensor:
        """What is added to what the layer makes of `x`, at weight 1."""
        inner = _applied(layer, x, self.down)
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(inner, self.up.t()[:, :, None, None])
        return inner @ self.up


@dataclass(frozen=True)
class Kron:
    """A Kronecker product, which is never built (LoKr).

    Attributes:
        left: (out1, in1).
        right: (out2, in2) of a linear layer, (out2, in2, kh, kw) of a convolution, where
            out1 * out2 = out and in1 * in2 = in.
    """

    left: Tensor
    right: Tensor

    def mapped(self, new: New) -> Self:
        """The same of other tensors."""
        return type(self)(new(self.left), new(self.right))

    def dense(self) -> Tensor:
        """(out, in * kh * kw) float32: what is added to W at weight 1."""
        left = self.left.float().view(*self.left.shape, *[1] * (self.right.ndim - 2))
        return torch.kron(left, self.right.float()).flatten(1)

    def act(self, layer: Layer, x: Tensor) -> Tensor:
        """What is added to what the layer makes of `x`, at weight 1."""
        out1, in1 = self.left.shape
        if isinstance(layer, nn.Conv2d):
            rows, channels, *size = x.shape
            inner = _applied(layer, x.reshape(rows * in1, channels // in1, *size), self.right)
            joined = self.left @ inner.reshape(rows, in1, -1)
            return joined.view(rows, out1 * inner.shape[1], *inner.shape[2:])
        inner = F.linear(x.unflatten(-1, (in1, -1)), self.right)  # (..., in1, out2)
        return F.linear(inner.transpose(-1, -2), self.left).transpose(-1, -2).flatten(-2)


@dataclass(frozen=True)
class Hada:
    """(up1 @ down1) * (up2 @ down2), number by number (LoHa), built when it acts: for many tokens
    that is little beside what it is multiplied with.

    Attributes:
        up1, up2: (out, rank).
        down1, down2: (rank, in) of a linear layer, (rank, in, kh, kw) of a convolution.
    """

    up1: Tensor
    down1: Tensor
    up2: Tensor
    down2: Tensor

    def mapped(self, new: New) -> Self:
        """The same of other tensors."""
        return type(self)(*map(new, (self.up1, self.down1, self.up2, self.down2)))

    def dense(self) -> Tensor:
        """(out, in * kh * kw) float32: what is added to W at weight 1."""
        one = self.up1.float() @ self.down1.float().flatten(1)
        return one.mul_(self.up2.float() @ self.down2.float().flatten(1))

    def act(self, layer: Layer, x: Tensor) -> Tensor:
        """What is added to what the layer makes of `x`, at weight 1."""
        weight = (self.up1 @ self.down1.flatten(1)) * (self.up2 @ self.down2.flatten(1))
        return _applied(layer, x, weight.view(-1, *self.down1.shape[1:]))


@dataclass(frozen=True)
class Dense:
    """A full difference. `weight`: of the layer's own shape."""

    weight: Tensor

    def mapped(self, new: New) -> Self:
        """The same of another tensor."""
        return type(self)(new(self.weight))

    def dense(self) -> Tensor:
        """(out, in * kh * kw) float32: what is added to W at weight 1."""
        return self.weight.float().flatten(1)

    def act(self, layer: Layer, x: Tensor) -> Tensor:
        """What is added to what the layer makes of `x`, at weight 1."""
        return _applied(layer, x, self.weight)


Difference = LowRank | Kron | Hada | Dense
Along = Literal["outputs", "inputs"]


@dataclass(frozen=True)
class Decomposed:
    """m * (W + difference) / |W + difference| - W: DoRA, before it has met W.

    Attributes:
        magnitude: m, (out,) or (in,).
        along: what it has a number for each of: norms are those of W's rows, or of what W has
            for each of its inputs.
    """

    difference: Difference
    magnitude: Tensor
    along: Along

    def mapped(self, new: New) -> Self:
        """The same of other tensors."""
        return type(self)(self.difference.mapped(new), new(self.magnitude), self.along)

    def against(self, weight: Tensor) -> "Rescaled":
        """What acts on a layer with this W. The gain takes the magnitude's memory."""
        whole = weight.float() + self.difference.dense().view(weight.shape)
        if self.along == "inputs":
            whole = whole.transpose(0, 1)
        norm = whole.flatten(1).norm(dim=1)
        # What has no direction stays nothing, and no gain leaves what the dtype holds.
        gain = (self.magnitude.float() / norm).where(norm > NOTHING, torch.zeros_like(norm))
        most = torch.finfo(self.magnitude.dtype).max
        self.magnitude.copy_(gain.clamp(-most, most))
        return Rescaled(self.difference, self.magnitude, self.along)


@dataclass(frozen=True)
class Rescaled:
    """gain * (W + difference) - W, where the gain acts on outputs or on inputs."""

    difference: Difference
    gain: Tensor
    along: Along

    def act(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        """What is added to `y`, which the layer made of `x`, at weight 1."""
        plain = y if layer.bias is None else y - _by_channel(layer.bias, layer)
        gain = _by_channel(self.gain, layer)
        if self.along == "outputs":
            return gain * (plain + self.difference.act(layer, x)) - plain
        x = gain * x
        return _applied(layer, x, layer.weight) + self.difference.act(layer, x) - plain


@dataclass(frozen=True)
class Bias:
    """(out,) added to what a layer gives."""

    bias: Tensor

    def mapped(self, new: New) -> Self:
        """The same of another tensor."""
        return type(self)(new(self.bias))

    def act(self, layer: Layer, _: Tensor) -> Tensor:
        """What is added to what the layer makes of anything, at weight 1."""
        return _by_channel(self.bias, layer)


@dataclass(frozen=True)
class Shift:
    """(n,) added to the weight and to the bias of a normalisation."""

    weight: Tensor
    bias: Tensor

    def mapped(self, new: New) -> Self:
        """The same of other tensors."""
        return type(self)(new(self.weight), new(self.bias))

    def act(self, layer: Layer, x: Tensor) -> Tensor:
        """What is added to what the layer makes of `x`, at weight 1."""
        if isinstance(layer, nn.GroupNorm):
            return F.group_norm(x, layer.num_groups, self.weight, self.bias, layer.eps)
        assert isinstance(layer, nn.LayerNorm)
        return F.layer_norm(x, layer.normalized_shape, self.weight, self.bias, layer.eps)


Term = Kron | Hada | Dense | Bias | Shift | Decomposed
Acting = Kron | Hada | Dense | Bias | Shift | Rescaled


@dataclass(frozen=True)
class Effect:
    """What one adapter does to a layer that it has met.

    Attributes:
        low: its ranks stand beside those of other adapters.
        terms: what acts on its own.
    """

    low: LowRank | None = None
    terms: tuple[Acting, ...] = ()


@dataclass(frozen=True)
class Change:
    """What one adapter is to do to a layer: as `Effect`."""

    low: LowRank | None = None
    terms: tuple[Term, ...] = ()

    def mapped(self, new: New) -> "Change":
        """The same of other tensors."""
        low = None if self.low is None else self.low.mapped(new)
        return Change(low, tuple(term.mapped(new) for term in self.terms))

    def met(self, layer: Layer) -> Effect:
        """Its effect on a layer; it is of no use afterwards."""
        return Effect(
            self.low,
            tuple(
                term.against(layer.weight) if isinstance(term, Decomposed) else term
                for term in self.terms
            ),
        )


def _applied(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """Another weight applied to `x` as the layer applies its own, without its bias."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)
    return F.linear(x, weight)


def _by_channel(numbers: Tensor, layer: Layer) -> Tensor:
    """One number for each channel, in a shape that activations can be multiplied by."""
    return numbers[:, None, None] if isinstance(layer, nn.Conv2d) else numbers
