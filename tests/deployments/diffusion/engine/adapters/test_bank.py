"""A layer with adapters is W + weight x up x down, row by row, by plain tensor arithmetic."""

from collections.abc import Mapping, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deployments.diffusion.engine.adapters import bank as bank_module
from deployments.diffusion.engine.adapters.bank import Bank, RowWeights
from deployments.diffusion.engine.adapters.changes import Effect, LowRank
from deployments.diffusion.engine.adapters.layers import Adapted, Joined

Matrices = Mapping[str, LowRank]
assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


class Model(nn.Module):
    """A layer of each kind: on the rows alone, on tokens, and a convolution with a stride."""

    eager = False

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(6, 10)
        self.attend = nn.Linear(6, 8, bias=False)
        self.conv = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.project = nn.Conv2d(4, 7, 1)

    def forward(self, rows: int) -> dict[str, Tensor]:
        given = inputs(rows)
        return {name: self.get_submodule(name)(x) for name, x in given.items()}


class Block(nn.Sequential):
    eager = False


def inputs(rows: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(rows)
    shapes = {"time": (6,), "attend": (9, 6), "conv": (4, 8, 8), "project": (4, 5, 3)}
    return {name: torch.randn(rows, *shape, generator=source) for name, shape in shapes.items()}


def adapter(seed: int, **ranks: int) -> Matrices:
    """Random matrices for the named layers, each of its own rank."""
    source = torch.Generator().manual_seed(seed)
    shapes = {"time": (6, 10), "attend": (6, 8), "conv": (4, 3, 3, 5), "project": (4, 1, 1, 7)}
    layers: dict[str, LowRank] = {}
    for name, rank in ranks.items():
        *fan_in, width = shapes[name]
        layers[name] = LowRank(
            torch.randn(rank, *fan_in, generator=source),
            torch.randn(rank, width, generator=source),
        )
    return layers


PARTS = {
    "everywhere": adapter(1, time=2, attend=3, conv=4, project=1),
    "attention": adapter(2, attend=5),
    "odd": adapter(3, time=1, conv=2),
}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval().requires_grad_(False)


def holding(bank: Bank) -> Bank:
    for key, layers in PARTS.items():
        bank.hold(key, effects(layers))
    return bank


def effects(layers: Matrices) -> Mapping[str, Effect]:
    return {name: Effect(low) for name, low in layers.items()}


@pytest.fixture
def bank(model: Model) -> Bank:
    return holding(Bank(model, torch.float32))


@pytest.fixture(params=["eager", "compiled"])
def any_bank(model: Model, request: pytest.FixtureRequest) -> Bank:
    """One whose model is eager, or one compiled block."""
    return holding(Bank(model, torch.float32, [model] if request.param == "compiled" else ()))


def run(model: Model, bank: Bank, rows: Sequence[RowWeights]) -> dict[str, Tensor]:
    bank.weigh(torch.tensor(bank.mix(rows)))
    with torch.inference_mode():
        outputs: dict[str, Tensor] = model(len(rows))
    return outputs


def on_layers(model: Model) -> dict[str, Joined]:
    layers = {n: m.adapters for n, m in model.named_children() if isinstance(m, Adapted)}
    return {name: on.joined for name, on in layers.items() if on is not None and on.joined}


def adapted_layers(model: Model) -> list[str]:
    return list(on_layers(model))


def by_hand(model: Model, rows: Sequence[RowWeights]) -> dict[str, Tensor]:
    """Each row alone, with the changed weights built in full."""
    expected: dict[str, list[Tensor]] = {name: [] for name in inputs(1)}
    for index, weights in enumerate(rows):
        for name, x in inputs(len(rows)).items():
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            weight = layer.weight.clone()
            for key, strength in weights.items():
                if name in PARTS.get(key, {}):
                    down, up = PARTS[key][name].down, PARTS[key][name].up
                    weight += strength * (up.t() @ down.flatten(1)).view(weight.shape)
            row = x[index : index + 1]
            if isinstance(layer, nn.Conv2d):
                y = F.conv2d(row, weight, layer.bias, layer.stride, layer.padding)
            else:
                y = row @ weight.t() + (0 if layer.bias is None else layer.bias)
            expected[name].append(y)
    return {name: torch.cat(parts) for name, parts in expected.items()}


MIXES: dict[str, Sequence[RowWeights]] = {
    "none": [{}, {}],
    "one": [{"everywhere": 0.7}],
    "alike": [{"everywhere": 0.7, "odd": -1.0}] * 3,
    "three in one row": [{"everywhere": 1.0, "attention": 0.5, "odd": -2.0}],
    "each its own": [{"everywhere": 1.0}, {"attention": -0.5}, {}, {"odd": 2.0, "attention": 10}],
    "weight zero": [{"everywhere": 0.0}, {"attention": 1.0, "odd": 0.0}],
    "unknown": [{"never held": 1.0}, {"odd": 1.0, "never held": 2.0}],
}


@pytest.mark.parametrize("mix", MIXES)
def test_every_row_gets_its_own_mix(mix: str, model: Model, any_bank: Bank) -> None:
    rows = MIXES[mix]
    outputs = run(model, any_bank, rows)
    for name, expected in by_hand(model, rows).items():
        assert_close(outputs[name], expected)


def test_one_mix_after_the_other(model: Model, any_bank: Bank) -> None:
    for rows in [*MIXES.values(), *reversed(MIXES.values())]:
        outputs = run(model, any_bank, rows)
        for name, expected in by_hand(model, rows).items():
            assert_close(outputs[name], expected)


def test_layers_that_nobody_adapts_are_the_plain_layers(model: Model, bank: Bank) -> None:
    def adapted() -> set[str]:
        return set(adapted_layers(model))

    assert adapted() == set()
    run(model, bank, [{"attention": 1.0}])
    assert adapted() == {"attend"}
    run(model, bank, [{"everywhere": 1.0}, {}])
    assert adapted() == {"time", "attend", "conv", "project"}
    run(model, bank, [{}, {}])
    assert adapted() == set()


def test_a_row_of_weight_zero_gets_exactly_nothing(model: Model, any_bank: Bank) -> None:
    """Not even from numbers that overflow: 0 x inf would be NaN."""
    huge = LowRank(torch.full((2, 6), 1e38), torch.full((2, 8), 1e38))
    any_bank.hold("huge", effects({"attend": huge}))
    outputs = run(model, any_bank, [{}, {"huge": 10.0}, {"attention": 1.0}])
    assert not outputs["attend"][1].isfinite().any()
    for name, expected in by_hand(model, [{}, {}, {"attention": 1.0}]).items():
        assert_close(outputs[name][[0, 2]], expected[[0, 2]])
    plain = model.attend.weight
    assert torch.equal(outputs["attend"][0], F.linear(inputs(3)["attend"], plain)[0])


def test_a_compiled_block_sees_the_same_for_every_mix(model: Model) -> None:
    """Its layers have adapters together, with one table and as many ranks: others are compiled
    anew."""
    block = Block(model.attend, model.conv)
    bank = holding(Bank(model, torch.float32, [block]))
    for rows, ranks in (
        ([{"attention": 1.0}], 8),
        ([{"odd": 1.0}, {}], 8),
        ([{"everywhere": 1.0}, {"odd": 1.0}, {"attention": 1.0}], 24),
    ):
        run(model, bank, rows)
        on = list(on_layers(model).values())
        assert {"attend", "conv"} <= set(adapted_layers(model))
        assert {len(one.down) for one in on} == {ranks}
        assert len({id(one.table) for one in on}) == 1
        assert tuple(on[0].table.last[2].used.shape) == (len(rows), ranks)
        assert on[0].table.last[2].unused is not None
    run(model, bank, [{}])
    assert adapted_layers(model) == []


def test_rows_that_weigh_alike_may_be_folded_into_one_dimension(model: Model, bank: Bank) -> None:
    """As the motion UNet folds frames or pixels into the batch."""
    rows = [{"everywhere": 0.5, "attention": -1.0}] * 2
    table = torch.tensor(bank.mix(rows))
    assert len(table) == 1
    bank.weigh(table)
    folded = inputs(12)["attend"]
    with torch.inference_mode():
        output = model.attend(folded)
    for index in range(12):
        weight = model.attend.weight.clone()
        for key, strength in rows[0].items():
            down, up = PARTS[key]["attend"].down, PARTS[key]["attend"].up
            weight += strength * up.t() @ down
        assert_close(output[index], folded[index] @ weight.t())


def test_an_adapter_that_was_replaced_is_multiplied_anew(model: Model, any_bank: Bank) -> None:
    run(model, any_bank, [{"attention": 1.0}])
    any_bank.drop("attention")
    assert "attention" not in any_bank.keys
    outputs = run(model, any_bank, [{"attention": 1.0}])
    assert_close(outputs["attend"], by_hand(model, [{}])["attend"])
    any_bank.hold("attention", effects(PARTS["odd"]))
    outputs = run(model, any_bank, [{"attention": 1.0}])
    assert_close(outputs["time"], by_hand(model, [{"odd": 1.0}])["time"])


def test_what_is_multiplied_without_use_is_bounded(model: Model, bank: Bank) -> None:
    everything: Sequence[RowWeights] = [{"everywhere": 1.0}, {"attention": 1.0}, {"odd": 1.0}]
    assert len(bank.mix(everything)[0]) == 3
    assert len(bank.mix([{"odd": 1.0}, {"attention": 1.0}])[0]) == 3, "nothing is put together anew"
    assert len(bank.mix([{"odd": 1.0}, {}])[0]) == 1
    run(model, bank, everything)


def test_a_mix_that_found_no_memory_leaves_the_plain_model(
    model: Model, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the call is made again with some layers of the new mix and some of the old."""
    run(model, bank, [{"attention": 1.0}, {"odd": 1.0}])
    joined, left = bank_module._joined, 2

    def refuse(layers: Sequence[LowRank]) -> LowRank:
        nonlocal left
        left -= 1
        if left < 0:
            raise torch.OutOfMemoryError("no room for a second copy")
        return joined(layers)

    rows: Sequence[RowWeights] = [{"everywhere": 1.0, "attention": 0.5}, {"odd": 2.0}]
    monkeypatch.setattr(bank_module, "_joined", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        bank.mix(rows)
    assert adapted_layers(model) == []
    monkeypatch.undo()
    for again in (rows, [{}, {}], rows):
        outputs = run(model, bank, again)
        for name, expected in by_hand(model, again).items():
            assert_close(outputs[name], expected)
