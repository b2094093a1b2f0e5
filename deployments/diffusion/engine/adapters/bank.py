"""Style adapters on a live model: all that a batch uses, multiplied at once, weighed row by row.

A layer with adapters computes W x + up (weights * (down x)): the adapters' ranks stand one
after the other in `down` and `up`, and a table of (rows, ranks) says how strongly each row uses
which. That is two products a layer, however many adapters there are. What is not of low rank acts
on its own, adapter by adapter. A layer that no row's adapters touch is the plain layer.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from deployments.diffusion.engine.adapters.changes import Change, Effect, LowRank
from deployments.diffusion.engine.adapters.layers import (
    Adapted,
    AdaptedConv2d,
    AdaptedLinear,
    Table,
    Weighed,
    adapted,
    put_on,
)
from deployments.diffusion.engine.adapters.names import adaptable, norms

RowWeights = Mapping[str, float]  # weight by adapter key, of one row
RANKS = 8  # of which those of uniform adapters are multiples
SLACK = 2  # ranks multiplied for those in use, before the others are taken out

_OnLayer = list[tuple[str, Effect]]  # adapters by key

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

    layers: Mapping[str, Effect]
    arrival: Arrival | None


class CompiledModule(Protocol):
    """A compiled block of a model.

    Attributes:
        eager: whether it is to run as it was written: compiled code knows low ranks alone.
    """

    eager: bool

    def modules(self) -> Iterator[nn.Module]:
        """All that it consists of."""
        ...


class Bank:
    """The adapters on one model.

    One thread calls the model and, before that, `mix` and `weigh`; `hold` and `drop` may be
    called by another, for adapters that no call under way uses.

    Args:
        model: the live model; its layers become ones that adapters can act on.
        dtype: what it computes in.
        compiled: its blocks that are compiled. So that they need not be compiled anew for every
            mix, a block's layers have adapters all together or not at all, all with the same
            ranks, `RANKS` and multiples of it; zeros fill up what is lacking.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, compiled: Collection[CompiledModule] = ()
    ) -> None:
        self._layers: dict[str, Adapted] = {
            name: adapted(layer) for name, layer in (*adaptable(model), *norms(model))
        }
        self._uniform = bool(compiled)
        names = {layer: name for name, layer in self._layers.items()}
        self._blocks = [
            (block, [names[m] for m in block.modules() if m in names]) for block in compiled
        ]
        self._together = {
            name: [other for other in within if _has_ranks(self._layers[other])]
            for _, within in self._blocks
            for name in within
        }
        self._dtype = dtype
        self._held: dict[str, _Part] = {}
        self._mixed: dict[str, _Part] = {}  # those whose ranks stand together now
        self._in_place: set[str] = set()  # layers that are not the plain ones
        self._tables: dict[Ranks, Table] = {}
        self._unused = False  # whether a row of the next call does without an adapter

    @property
    def in_use(self) -> bool:
        """Whether the next call multiplies any adapter."""
        return bool(self._mixed)

    @property
    def keys(self) -> frozenset[str]:
        """Adapters that have layers on this model."""
        return frozenset(self._held)

    def met(self, changes: Mapping[str, Change]) -> Mapping[str, Effect]:
        """What changes on the model's device do to these layers; they are of no use afterwards."""
        return {name: change.met(self._layers[name]) for name, change in changes.items()}

    def hold(self, key: str, layers: Mapping[str, Effect], arrival: Arrival | None = None) -> None:
        """Takes an adapter's layers on this model, on the model's device; nobody uses it yet."""
        if layers:
            self._held[key] = _Part(layers, arrival)

    def drop(self, key: str) -> None:
        """Forgets an adapter. A model whose calls multiply it does so until the next `mix`."""
        self._held.pop(key, None)

    def nothing(self) -> Mapping[str, Effect]:
        """An adapter on every layer that changes nothing: to try what adapters take."""
        return {
            name: _filled_up(Effect(), RANKS, layer)
            for name, layer in self._layers.items()
            if _has_ranks(layer)
        }

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
        alike = all(row == table[0] for row in table) and not self._uniform
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
            known.set(weights, weights == 0 if self._unused or self._uniform else None)

    def clear(self) -> None:
        """Makes every layer the plain one, and lets go of what was multiplied."""
        for name in self._in_place:
            self._layers[name].adapters = None
        for block, _ in self._blocks:
            block.eager = False
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
        self.clear()
        layers = self._uniform_layers(parts) if self._uniform else _touched(parts)
        try:
            for name, effects in layers:
                self._put_on(name, effects)
        except BaseException:  # memory may run out, and the call will be made again
            self.clear()
            raise
        for block, within in self._blocks:
            block.eager = any(self._acts_alone(name) for name in within)
        self._mixed = parts

    def _put_on(self, name: str, effects: _OnLayer) -> None:
        """Has a layer do what these adapters ask of it."""
        low = [(key, effect.low) for key, effect in effects if effect.low is not None]
        terms = [
            Weighed(term, self._table(((key, 1),)))
            for key, effect in effects
            for term in effect.terms
        ]
        joined = None
        if low:
            table = self._table(tuple((key, len(one.down)) for key, one in low))
            joined = (_joined([one for _, one in low]), table)
        self._in_place.add(name)
        put_on(self._layers[name], joined, terms)

    def _table(self, ranks: Ranks) -> Table:
        return self._tables.setdefault(ranks, Table())

    def _acts_alone(self, name: str) -> bool:
        adapters = self._layers[name].adapters
        return adapters is not None and bool(adapters.terms)

    def _uniform_layers(self, parts: Mapping[str, _Part]) -> Iterator[tuple[str, _OnLayer]]:
        """The same for compiled blocks: ranks do not depend on the layer, only on the mix."""
        ranks = {key: _uniform_ranks(part) for key, part in parts.items()}
        touched = {name for part in parts.values() for name in part.layers}
        touched |= {other for name in touched for other in self._together.get(name, ())}
        for name in sorted(touched):
            layer = self._layers[name]
            effects = {key: part.layers.get(name, Effect()) for key, part in parts.items()}
            yield (
                name,
                [
                    (key, _filled_up(effect, ranks[key], layer) if _has_ranks(layer) else effect)
                    for key, effect in effects.items()
                ],
            )


def _touched(parts: Mapping[str, _Part]) -> Iterable[tuple[str, _OnLayer]]:
    """The layers that adapters act on, each with its adapters."""
    touched: dict[str, _OnLayer] = {}
    for key, part in parts.items():
        for name, effect in part.layers.items():
            touched.setdefault(name, []).append((key, effect))
    return touched.items()


def _uniform_ranks(part: _Part) -> int:
    """Of an adapter, on all layers alike."""
    low = [len(effect.low.down) for effect in part.layers.values() if effect.low is not None]
    return -(-max(low, default=1) // RANKS) * RANKS


def _has_ranks(layer: Adapted) -> bool:
    """Whether matrices can act on it; they cannot on a normalisation."""
    return isinstance(layer, AdaptedLinear | AdaptedConv2d)


def _filled_up(effect: Effect, ranks: int, layer: Adapted) -> Effect:
    """An effect on a layer, its matrices copied, with zeros for the ranks that it lacks."""
    weight = layer.weight
    down = weight.new_zeros(ranks, *weight.shape[1:])
    up = weight.new_zeros(ranks, len(weight))
    if effect.low is not None:
        down[: len(effect.low.down)] = effect.low.down
        up[: len(effect.low.up)] = effect.low.up
    return Effect(LowRank(down, up), effect.terms)


def _joined(layers: Sequence[LowRank]) -> LowRank:
    """Adapters of one layer, their ranks one after the other."""
    if len(layers) == 1:
        return layers[0]
    return LowRank(
        torch.cat([layer.down for layer in layers]), torch.cat([layer.up for layer in layers])
    )
