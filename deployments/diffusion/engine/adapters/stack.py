"""Style adapters on a live model, weighed row by row.

PEFT's layers hold the matrices; a thin layer around them gives every row of the batch its own
weight.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

RowWeights = Mapping[str, float]  # weight by adapter key, of one row
_Weigh = Callable[[Tensor], Tensor]


class _RowWeights:
    """Weighs the inner activations of an adapter, row by row.

    Rows of weight 0 get exactly nothing, even where theirs overflowed: 0 x inf would be NaN,
    and one row's adapter would spoil its neighbours.
    """

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights
        self._used = weights != 0

    def __call__(self, inner: Tensor) -> Tensor:
        return torch.where(self._used, inner * self._weights, 0.0)


class _RowLora(nn.Module):
    """A layer with its adapters: base(x) + up(weight x down(x)), summed over the adapters in use.

    PEFT's own forward weighs what comes out of `up` instead. Between the two matrices it is the
    same sum, on a few channels instead of hundreds.

    Attributes:
        layer: PEFT's layer, which holds the base layer and each adapter's pair.
        weigh: how to weigh, by key of the adapters in use.
    """

    def __init__(self, layer: LoraLayer) -> None:
        super().__init__()
        self.layer = layer
        self.weigh: dict[str, _Weigh] = {}

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        y: Tensor = layer.base_layer(x)
        for key, weigh in self.weigh.items():
            y = y + layer.lora_B[key](weigh(layer.lora_A[key](x)))
        return y


class LoraStack:
    """The adapters on one live model, and the weights with which its rows use them.

    A layer is wrapped only while a batch uses an adapter on it: a wrapper costs microseconds a
    call even if no adapter is in use, and a UNet has hundreds of layers.

    Args:
        model: the live model; its layers are wrapped and unwrapped.
        input_ranks: number of dimensions of each layer's input, by module name (see
            `record_input_ranks`); it decides how a row's weight broadcasts.
    """

    def __init__(self, model: nn.Module, input_ranks: Mapping[str, int]) -> None:
        self._model = model
        self._input_ranks = input_ranks
        self._layers: dict[str, _RowLora] = {}  # by the name of the layer that it wraps
        self._in_place: set[str] = set()  # of these, those that stand in the model now
        self._by_key: dict[str, tuple[str, ...]] = {}
        self._rows: tuple[tuple[tuple[str, float], ...], ...] | None = None

    @property
    def keys(self) -> frozenset[str]:
        """Adapters that have layers on this model."""
        return frozenset(self._by_key)

    def attach(self, key: str, layers: Mapping[str, LoraLayer]) -> None:
        """Takes an adapter, inactive. Takes the layers over."""
        for name, layer in layers.items():
            known = self._layers.get(name)
            if known is None:
                layer.base_layer = self._model.get_submodule(name)
                layer._active_adapter = []  # PEFT's own idea of it, which nothing here uses
                self._layers[name] = _RowLora(layer)
                continue
            for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
                source = getattr(layer, attribute)
                if key in source:
                    getattr(known.layer, attribute)[key] = source[key]
        if layers:
            self._by_key[key] = tuple(layers)
            self._rows = None

    def detach(self, key: str) -> None:
        """Takes an adapter off and frees its memory. No batch in flight may use it."""
        names = self._by_key.pop(key, ())
        self._put(self._in_place.difference(names))
        kept = {name for others in self._by_key.values() for name in others}
        for name in names:
            if name in kept:
                self._layers[name].layer.delete_adapter(key)
            else:
                del self._layers[name]
        self._rows = None

    def set_rows(
        self, rows: Sequence[RowWeights], device: torch.device, dtype: torch.dtype
    ) -> None:
        """Weighs the adapters for the next forward: one mapping per row of its batch."""
        wanted = tuple(
            tuple(sorted((k, w) for k, w in row.items() if k in self._by_key and w != 0))
            for row in rows
        )
        if wanted == self._rows:
            return
        self._rows = wanted
        active = sorted({key for row in wanted for key, _ in row})
        self._put({name for key in active for name in self._by_key[key]})
        for name in self._in_place:
            self._layers[name].weigh = {}
        for key in active:
            weights = [dict(row).get(key, 0.0) for row in wanted]
            if len(set(weights)) == 1:
                # One number for all, also where a layer folds frames or pixels into the batch.
                for name in self._by_key[key]:
                    self._layers[name].weigh[key] = partial(torch.mul, other=weights[0])
                continue
            column = torch.tensor(weights, dtype=dtype).to(device)
            views = {rank: _RowWeights(column.view(-1, *[1] * (rank - 1))) for rank in (2, 3, 4)}
            for name in self._by_key[key]:
                self._layers[name].weigh[key] = views[self._input_ranks[name]]

    def _put(self, names: Set[str]) -> None:
        """Has exactly these layers wrapped."""
        for name in self._in_place ^ names:
            layer = self._layers[name]
            parent, _, child = name.rpartition(".")
            module = layer if name in names else layer.layer.base_layer
            setattr(self._model.get_submodule(parent), child, module)
        self._in_place = set(names)


def record_input_ranks(model: nn.Module, forward: Callable[[], object]) -> dict[str, int]:
    """Runs `forward` once and notes the dimensions of every linear and conv layer's input."""
    ranks: dict[str, int] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            ranks[name] = (*args, *kwargs.values())[0].ndim

        return hook

    handles = [
        module.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return ranks
