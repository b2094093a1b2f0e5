"""Style adapters on a live model: all that a batch uses, multiplied at once, weighed row by row.

A layer with adapters computes W x + up (weights * (down x)): the adapters' ranks stand one
after the other in `down` and `up`, and a table of (rows, ranks) says how strongly each row uses
which. That is two products a layer, however many adapters there are; a layer that no row's
adapters touch is the plain layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deployments.diffusion.engine.adapters.reader import LowRank

RowWeights = Mapping[str, float]  # weight by adapter key, of one row
SLACK = 2  # ranks multiplied for those in use, before the others are taken out

# Which adapters stand one after the other on a layer, and the rank of each.
Ranks = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Arrival:
    """Numbers on their way to a GPU, on a stream of their own.

    Attributes:
        event: reached when they are there.
        numbers: what is on its way.
    """

    event: torch.cuda.Event
    numbers: Tensor

    def wait(self) -> None:
        """Lets the current stream go on when they are there, and keeps their memory until it is
        done with them. The host does not wait."""
        stream = torch.cuda.current_stream(self.numbers.device)
        stream.wait_event(self.event)
        self.numbers.record_stream(stream)


class _Part(NamedTuple):
    """An adapter on the device. `arrival`: `None` if nothing needs to be waited for."""

    layers: Mapping[str, LowRank]
    arrival: Arrival | None


@dataclass
class _Table:
    """The weights of the current call for layers with the same ranks.

    Attributes:
        weights: (rows, ranks), or (1, ranks) where all rows weigh alike.
        unused: where `weights` is 0, if it is anywhere: there a row gets exactly nothing, even
            from an adapter whose numbers overflow (0 x inf would be NaN).
    """

    weights: Tensor | None = None
    unused: Tensor | None = None
    _views: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def set(self, weights: Tensor, unused: Tensor | None) -> None:
        """Takes the table of the next call."""
        self.weights, self.unused = weights, unused
        self._views.clear()

    def weigh(self, inner: Tensor, channels: int) -> Tensor:
        """Weighs activations between the two products, in place.

        Args:
            channels: the dimension of `inner` in which the ranks stand; rows stand in the first.
        """
        view = self._views.get(inner.ndim)
        if view is None:
            assert self.weights is not None
            shape = [1] * inner.ndim
            shape[0], shape[channels] = self.weights.shape
            unused = None if self.unused is None else self.unused.view(shape)
            view = self._views[inner.ndim] = self.weights.view(shape), unused
        weights, unused = view
        inner.mul_(weights)
        return inner if unused is None else inner.masked_fill_(unused, 0)


class Bank:
    """The adapters on one model.

    One thread calls the model and, before that, `mix` and `weigh`; `hold` and `drop` may be
    called by another, for adapters that no call under way uses.

    Args:
        model: the live model; the `forward` of layers in use is replaced, and put back.
        dtype: what it computes in.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._modules = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        }
        self._dtype = dtype
        self._held: dict[str, _Part] = {}
        self._mixed: dict[str, _Part] = {}  # those whose ranks stand together now
        self._in_place: set[str] = set()  # layers that are not the plain ones
        self._tables: dict[Ranks, _Table] = {}
        self._unused = False  # whether a row of the next call does without an adapter

    @property
    def keys(self) -> frozenset[str]:
        """Adapters that have layers on this model."""
        return frozenset(self._held)

    def hold(self, key: str, layers: Mapping[str, LowRank], arrival: Arrival | None = None) -> None:
        """Takes an adapter's layers on this model, on the model's device; nobody uses it yet."""
        if layers:
            self._held[key] = _Part(layers, arrival)

    def drop(self, key: str) -> None:
        """Forgets an adapter. A model whose calls multiply it does so until the next `mix`."""
        self._held.pop(key, None)

    def mix(self, rows: Sequence[RowWeights]) -> list[list[float]]:
        """Has the adapters multiplied that these rows use, one mapping per row of the next call.

        Returns the (rows, adapters) table of weights that `weigh` is to be given, on the device.
        """
        used = [
            key
            for key in dict.fromkeys(key for row in rows for key in row)
            if key in self._held and any(row.get(key) for row in rows)
        ]
        if not self._covers(used):
            self._remix({key: self._held[key] for key in sorted(used)})
        table = [[row.get(key, 0.0) for key in self._mixed] for row in rows]
        self._unused = any(0.0 in row for row in table)
        alike = all(row == table[0] for row in table)
        return table[:1] if alike else table

    def weigh(self, table: Tensor) -> None:
        """Takes the table that `mix` gave, as (rows, adapters) on the device."""
        if not self._mixed:
            return
        table = table.to(self._dtype)
        columns = dict(zip(self._mixed, table.split(1, dim=1), strict=True))
        rows = len(table)
        for ranks, known in self._tables.items():
            weights = torch.cat([columns[key].expand(rows, rank) for key, rank in ranks], dim=1)
            known.set(weights, weights == 0 if self._unused else None)

    def clear(self) -> None:
        """Makes every layer the plain one, and lets go of what was multiplied."""
        for name in self._in_place:
            del self._modules[name].__dict__["forward"]
        self._mixed, self._tables, self._in_place = {}, {}, set()

    def _covers(self, used: Sequence[str]) -> bool:
        """Whether what is multiplied now serves these adapters, without much waste."""
        if any(self._mixed.get(key) is not self._held[key] for key in used):
            return False
        return len(self._mixed) <= SLACK * len(used)

    def _remix(self, parts: dict[str, _Part]) -> None:
        for part in parts.values():
            if part.arrival is not None:
                part.arrival.wait()
        touched: dict[str, list[tuple[str, LowRank]]] = {}
        for key, part in parts.items():
            for name, layer in part.layers.items():
                touched.setdefault(name, []).append((key, layer))
        self.clear()
        try:
            for name, layers in touched.items():
                ranks = tuple((key, len(layer.down)) for key, layer in layers)
                table = self._tables.setdefault(ranks, _Table())
                module = self._modules[name]
                joined = _joined([layer for _, layer in layers])
                # Beside the class's own, which `del` brings back.
                module.__dict__["forward"] = _with_adapters(module, joined, table)
                self._in_place.add(name)
        except BaseException:  # memory may run out, and the call will be made again
            self.clear()
            raise
        self._mixed = parts


def _joined(layers: Sequence[LowRank]) -> LowRank:
    """Adapters of one layer, their ranks one after the other."""
    if len(layers) == 1:
        return layers[0]
    return LowRank(
        torch.cat([layer.down for layer in layers]), torch.cat([layer.up for layer in layers])
    )


def _with_adapters(
    module: nn.Linear | nn.Conv2d, adapters: LowRank, table: _Table
) -> Callable[[Tensor], Tensor]:
    """A layer's forward with adapters."""
    if isinstance(module, nn.Conv2d):
        return _convolution(module, adapters.down, adapters.up, table)
    return _linear(module, adapters.down, adapters.up, table)


def _linear(
    module: nn.Linear, down: Tensor, up: Tensor, table: _Table
) -> Callable[[Tensor], Tensor]:
    ranks, width = up.shape
    weight, bias = module.weight, module.bias

    def forward(x: Tensor) -> Tensor:
        y = F.linear(x, weight, bias)
        inner = table.weigh(F.linear(x, down), -1)
        y.view(-1, width).addmm_(inner.view(-1, ranks), up)
        return y

    return forward


def _convolution(
    module: nn.Conv2d, down: Tensor, up: Tensor, table: _Table
) -> Callable[[Tensor], Tensor]:
    base = nn.Conv2d.forward
    raised = up.t()[:, :, None, None].contiguous()
    stride, padding, dilation = module.stride, module.padding, module.dilation

    def forward(x: Tensor) -> Tensor:
        inner = F.conv2d(x, down, None, stride, padding, dilation)
        return base(module, x).add_(F.conv2d(table.weigh(inner, 1), raised))

    return forward
