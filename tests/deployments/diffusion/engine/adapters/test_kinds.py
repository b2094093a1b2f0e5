"""Every kind of adapter, as LyCORIS and PEFT write it, does to each layer what they make of it.

Their own layers are the judges; what a weight but 1 means is y + weight * (theirs - y), by plain
arithmetic.
"""

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris import LycorisNetwork, create_lycoris
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deployments.diffusion.engine.adapters.bank import Bank
from deployments.diffusion.engine.adapters.changes import Decomposed, Dense, Kron
from deployments.diffusion.engine.adapters.reader import LoraError, LoraReader, LoraWeights

CPU = torch.device("cpu")
WEIGHTS = (1.0, 0.4, 0.0, -1.5)


class Toy(nn.Module):
    """A layer of each kind that adapters act on."""

    eager = False

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(12, 20)
        self.narrow = nn.Linear(20, 12, bias=False)
        self.square = nn.Linear(16, 16)
        self.conv = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.point = nn.Conv2d(8, 16, 1)
        self.same = nn.Conv2d(8, 8, 3, padding=1)
        self.layer_norm = nn.LayerNorm(12)
        self.group_norm = nn.GroupNorm(4, 8)


SHAPES: dict[str, tuple[int, ...]] = {
    "wide": (5, 12),
    "narrow": (5, 20),
    "square": (16,),
    "conv": (8, 6, 6),
    "point": (8, 5, 3),
    "same": (8, 4, 4),
    "layer_norm": (5, 12),
    "group_norm": (8, 4, 4),
}


TARGETS = ["wide", "narrow", "square", "conv", "point", "same"]


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    made = Toy().eval().requires_grad_(False)
    for norm in (made.layer_norm, made.group_norm):
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias)
    return made


def given(name: str, rows: int = len(WEIGHTS)) -> Tensor:
    return torch.randn(rows, *SHAPES[name], generator=torch.Generator().manual_seed(7))


def randomised(network: nn.Module, scale: float = 0.3) -> None:
    """Parts of fresh adapters are zeros: they do nothing yet."""
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "dora_scale" in name or "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=source))
            else:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=source))


def lycoris(toy: Toy, file: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Toy:
    """Writes an adapter of all layers, and returns a model with it as LyCORIS trains it."""
    theirs = deepcopy(toy)
    LycorisNetwork.apply_preset({"target_module": ["Toy"], "enable_conv": True})
    network = create_lycoris(theirs, 1.0, warn_on_unmatched=False, **options)
    network.apply_to()
    randomised(network)
    save_file({n: t.to(dtype).contiguous() for n, t in network.state_dict().items()}, file)
    if dtype != torch.float32:
        network.load_state_dict(load_file(file))  # as it was rounded
    return theirs.eval()


def read(toy: Toy, path: Path) -> LoraWeights:
    return LoraReader({"unet": toy}, torch.float32).read(path)


def hold(bank: Bank, key: str, weights: LoraWeights) -> None:
    bank.hold(key, bank.met(weights.to(CPU).layers["unet"]))


def weighed(bank: Bank, *rows: Mapping[str, float]) -> None:
    bank.weigh(torch.tensor(bank.mix(rows)))


def assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4, msg=lambda m: f"{what}: {m}")


@torch.no_grad()
def assert_each_row(toy: Toy, bank: Bank, theirs: Toy, adapted: Collection[str]) -> None:
    """Rows of several weights, in one call."""
    weighed(bank, {}, {})
    plain = {name: toy.get_submodule(name)(given(name)) for name in SHAPES}
    weighed(bank, *({"style": weight} for weight in WEIGHTS))
    for name, y in plain.items():
        x = given(name)
        found = toy.get_submodule(name)(x)
        if name not in adapted:
            assert torch.equal(found, y), name
            continue
        change = theirs.get_submodule(name)(x) - y
        assert change.abs().max() > 0.01, f"{name}: nothing is judged"
        for row, strength in enumerate(WEIGHTS):
            assert_close(found[row], y[row] + strength * change[row], f"{name} at {strength}")
        assert torch.equal(found[2], y[2]), "weight 0 is exactly nothing"
    weighed(bank, {}, {})
    for name, y in plain.items():
        assert torch.equal(toy.get_submodule(name)(given(name)), y)


KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"algo": "lora", "linear_dim": 3, "linear_alpha": 2},
    "LoCon with a middle layer": {"algo": "locon", "linear_dim": 3, "use_tucker": True},
    "LoCon with a scalar": {"algo": "locon", "linear_dim": 3, "use_scalar": True},
    "LoHa of low ranks": {"algo": "loha", "linear_dim": 2, "linear_alpha": 1.5},
    "LoHa of high ranks": {"algo": "loha", "linear_dim": 9, "linear_alpha": 3},
    "LoHa in Tucker's form": {"algo": "loha", "linear_dim": 3, "use_tucker": True},
    "LoKr": {"algo": "lokr", "linear_dim": 1, "linear_alpha": 2, "factor": 2},
    "LoKr, both decomposed": {
        "algo": "lokr",
        "linear_dim": 1,
        "factor": 4,
        "decompose_both": True,
    },
    "LoKr, whole": {"algo": "lokr", "linear_dim": 100_000, "linear_alpha": 1, "factor": 4},
    "LoKr in Tucker's form": {"algo": "lokr", "linear_dim": 1, "factor": 2, "use_tucker": True},
    "full differences": {"algo": "full"},
    "with normalisations": {"algo": "lora", "linear_dim": 2, "train_norm": True},
    "full, with normalisations": {"algo": "full", "train_norm": True},
}
DORA = {
    f"DoRA of {kind}, along {'outputs' if on_output else 'inputs'}": {
        **KINDS[kind],
        "dora_wd": True,
        "wd_on_output": on_output,
    }
    for kind in (
        "LoRA",
        "LoCon with a middle layer",
        "LoHa of low ranks",
        "LoHa of high ranks",
        "LoKr",
        "LoKr, whole",
    )
    for on_output in (True, False)
}


def adapted(kind: str) -> set[str]:
    return set(SHAPES) if "normalisations" in kind else set(TARGETS)


@pytest.mark.parametrize("kind", [*KINDS, *DORA])
def test_a_kind_is_what_lycoris_merges(kind: str, toy: Toy, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    theirs = lycoris(toy, file, **(KINDS | DORA)[kind])
    bank = Bank(toy, torch.float32)
    weights = read(toy, file)
    hold(bank, "style", weights)
    assert weights.layers["unet"].keys() == adapted(kind)
    assert_each_row(toy, bank, theirs, adapted(kind))


@pytest.mark.parametrize("kind", [*KINDS, *DORA])
def test_a_kind_beside_compiled_blocks(kind: str, toy: Toy, tmp_path: Path) -> None:
    """They are to run eager where something acts that is more than ranks."""
    file = tmp_path / "style.safetensors"
    theirs = lycoris(toy, file, **(KINDS | DORA)[kind])
    bank = Bank(toy, torch.float32, [toy])
    weights = read(toy, file)
    hold(bank, "style", weights)
    weighed(bank, {"style": 1.0})
    terms = any(change.terms for change in weights.layers["unet"].values())
    assert toy.eager is terms
    assert_each_row(toy, bank, theirs, adapted(kind))
    assert not toy.eager


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["LoCon with a middle layer", "LoHa of low ranks", "LoKr"])
def test_files_in_half_precision(kind: str, dtype: torch.dtype, toy: Toy, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    theirs = lycoris(toy, file, dtype, **KINDS[kind])
    bank = Bank(toy, torch.float32)
    hold(bank, "style", read(toy, file))
    assert_each_row(toy, bank, theirs, adapted(kind))


@torch.no_grad()
def test_kinds_side_by_side(toy: Toy, tmp_path: Path) -> None:
    """A row of each, and rows that mix two."""
    bank = Bank(toy, torch.float32)
    theirs: dict[str, Toy] = {}
    for number, (kind, options) in enumerate((KINDS | DORA).items()):
        file = tmp_path / f"{number}.safetensors"
        theirs[kind] = lycoris(toy, file, **options)
        hold(bank, kind, read(toy, file))
    kinds = list(theirs)
    rows = [{kind: 0.7} for kind in kinds]
    rows += [{one: 0.5, other: -0.6} for one, other in zip(kinds, kinds[3:], strict=False)]
    for name in SHAPES:
        layer, x = toy.get_submodule(name), given(name, len(rows))
        weighed(bank, {}, {})
        expected = layer(x)
        for kind in kinds:
            if name in adapted(kind):
                weights = torch.tensor([row.get(kind, 0.0) for row in rows])
                change = theirs[kind].get_submodule(name)(x) - layer(x)
                expected = expected + weights.view(-1, *[1] * (x.ndim - 1)) * change
        weighed(bank, *rows)
        assert_close(layer(x), expected, name)


PEFT: dict[str, Callable[[], Any]] = {
    "LoRA with biases": lambda: LoraConfig(
        r=3, lora_alpha=5, target_modules=["wide", "square", "conv"], lora_bias=True
    ),
    "DoRA": lambda: LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, use_dora=True),
    "DoRA, rank-stabilised": lambda: LoraConfig(
        r=4, lora_alpha=5, target_modules=TARGETS, use_dora=True, use_rslora=True
    ),
    "LoHa": lambda: LoHaConfig(r=2, alpha=3, target_modules=TARGETS),
    "LoHa in its compact form": lambda: LoHaConfig(
        r=2, alpha=3, target_modules=TARGETS, use_effective_conv2d=True
    ),
    "LoKr": lambda: LoKrConfig(r=2, alpha=3, target_modules=TARGETS),
    "LoKr, both decomposed": lambda: LoKrConfig(
        r=1, alpha=3, target_modules=TARGETS, decompose_both=True, decompose_factor=4
    ),
    "LoKr, whole": lambda: LoKrConfig(r=100, alpha=30, target_modules=TARGETS),
    "LoKr in its compact form": lambda: LoKrConfig(
        r=1, alpha=3, target_modules=TARGETS, use_effective_conv2d=True
    ),
}


# PEFT takes biases, which are 1-D, for matrices that were not whole when they were saved.
@pytest.mark.filterwarnings(
    "ignore:Adapter 'default'. 3 LoRA tensor:peft.utils.warning.PeftWarning"
)
@pytest.mark.parametrize("kind", PEFT)
def test_a_kind_is_what_peft_makes_of_it(kind: str, toy: Toy, tmp_path: Path) -> None:
    model = get_peft_model(toy, PEFT[kind]())
    randomised(nn.ModuleDict({"peft": model}), 0.3)
    for name, parameter in toy.named_parameters():
        if name.endswith(("base_layer.weight", "base_layer.bias")):
            parameter.requires_grad_(False)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = {name: toy.get_submodule(name)(given(name)) for name in SHAPES}
        plain = model.unload()
        bank = Bank(plain, torch.float32)
        hold(bank, "style", read(plain, tmp_path))
        weighed(bank, *[{"style": 1.0}] * len(WEIGHTS))
        for name in SHAPES:
            assert_close(plain.get_submodule(name)(given(name)), expected[name], name)


def test_what_is_kept_is_small(toy: Toy, tmp_path: Path) -> None:
    """Only what has no smaller form is kept as large as the layers."""
    forms = {}
    for kind, form in {"LoKr, whole": Kron, "full differences": Dense}.items():
        lycoris(toy, tmp_path / "style.safetensors", **KINDS[kind])
        weights = read(toy, tmp_path / "style.safetensors")
        forms[kind] = weights
        for change in weights.layers["unet"].values():
            assert any(isinstance(term, form) for term in change.terms)
    assert forms["LoKr, whole"].nbytes < forms["full differences"].nbytes / 2
    name = "DoRA of LoKr, whole, along inputs"
    lycoris(toy, tmp_path / "style.safetensors", **DORA[name])
    dora = read(toy, tmp_path / "style.safetensors")
    for change in dora.layers["unet"].values():
        (term,) = change.terms
        assert isinstance(term, Decomposed)
        assert isinstance(term.difference, Kron)
    assert dora.nbytes < forms["full differences"].nbytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_dead_row_has_no_gain(dtype: torch.dtype) -> None:
    """Its norm is 0: what it would be divided by."""
    weight = torch.randn(3, 4)
    weight[1] = 0
    difference = Dense(torch.zeros(3, 4, dtype=dtype))
    effect = Decomposed(difference, torch.ones(3, dtype=dtype), "outputs").against(weight)
    assert effect.gain.isfinite().all()
    assert effect.gain[1] == 0
    torch.testing.assert_close(effect.gain[0].float(), 1 / weight[0].norm(), rtol=1e-2, atol=0)


def test_numbers_that_torch_has_no_type_for(toy: Toy, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    save_file({"wide.diff": torch.ones(20, 12, dtype=torch.uint8)}, file)
    content = file.read_bytes().replace(b'"U8"', b'"F4"', 1)
    file.write_bytes(content.replace(b"[20,12]", b"[20,24]", 1))
    with pytest.raises(LoraError, match=r"type that is not read|not a readable safetensors file"):
        read(toy, file)


ODD: dict[str, tuple[dict[str, Tensor], str]] = {
    "half of a LoHa": ({"wide.hada_w1_a": torch.ones(20, 2)}, "no hada_w1_b"),
    "LoHa of other ranks": (
        {
            "wide.hada_w1_a": torch.ones(20, 2),
            "wide.hada_w1_b": torch.ones(3, 12),
            "wide.hada_w2_a": torch.ones(20, 2),
            "wide.hada_w2_b": torch.ones(2, 12),
        },
        r"\(20, 2\) and \(3, 12\) as hada_w1_a and hada_w1_b",
    ),
    "LoKr of another layer": (
        {"wide.lokr_w1": torch.ones(4, 4), "wide.lokr_w2": torch.ones(4, 4)},
        r"\(4, 4\) by \(4, 4\) for a layer of \(20, 12\)",
    ),
    "half of a LoKr": ({"wide.lokr_w1": torch.ones(4, 4)}, "no lokr_w2_a"),
    "LoKr whose matrices do not go together": (
        {
            "wide.lokr_w1_a": torch.ones(4, 3),
            "wide.lokr_w1_b": torch.ones(2, 4),
            "wide.lokr_w2": torch.ones(5, 3),
        },
        r"does not fit this model; .*unet\.wide: .*cannot be multiplied",
    ),
    "a magnitude alone": ({"wide.dora_scale": torch.ones(20, 1)}, "a magnitude of nothing"),
    "a magnitude too short": (
        {
            "wide.lora_down.weight": torch.ones(2, 12),
            "wide.lora_up.weight": torch.ones(20, 2),
            "wide.dora_scale": torch.ones(1, 7),
        },
        "7 magnitudes for a layer",
    ),
    "a difference of another shape": ({"wide.diff": torch.ones(12, 20)}, r"\(12, 20\) as"),
    "a bias of another length": ({"wide.diff_b": torch.ones(3)}, r"\(3,\) as .* of the bias"),
    "a normalisation of another length": ({"layer_norm.w_norm": torch.ones(3)}, r"\(3,\) as"),
    "ranks for a normalisation": (
        {"layer_norm.lora_down.weight": torch.ones(2, 12)},
        "no part of|beside what does not go with it|down-projection",
    ),
    "LoRA and LoHa at once": (
        {
            "wide.lora_down.weight": torch.ones(2, 12),
            "wide.lora_up.weight": torch.ones(20, 2),
            "wide.hada_w1_a": torch.ones(20, 2),
        },
        "hada_w1_a beside what does not go with it",
    ),
    "an alpha of nothing": (
        {"wide.alpha": torch.ones(()), "narrow.diff": torch.ones(12, 20)},
        "nothing but an alpha",
    ),
    "a middle layer of another rank": (
        {
            "conv.lora_down.weight": torch.ones(2, 8, 1, 1),
            "conv.lora_mid.weight": torch.ones(3, 3, 3, 3),
            "conv.lora_up.weight": torch.ones(12, 2, 1, 1),
        },
        r"\(3, 3, 3, 3\) for a layer",
    ),
    "numbers that are none": (
        {"wide.diff": torch.ones(20, 12, dtype=torch.int32)},
        r"numbers in torch\.int32",
    ),
    "a magnitude without dimensions": (
        {
            "wide.lora_down.weight": torch.ones(2, 12),
            "wide.lora_up.weight": torch.ones(20, 2),
            "wide.dora_scale": torch.ones(()),
        },
        "does not fit this model",
    ),
    "matrices without dimensions": (
        {f"wide.hada_w{n}_{x}": torch.ones(()) for n in (1, 2) for x in "ab"},
        "does not fit this model",
    ),
    "a rank without dimensions": (
        {
            "wide.lora_A.weight": torch.ones(()),
            "wide.lora_B.weight": torch.ones(20, 2),
            "wide.lora_B.bias": torch.ones(20),
        },
        "does not fit this model",
    ),
    "OFT": ({"wide.oft_blocks": torch.ones(4, 3, 3)}, "is OFT, which cannot be mixed"),
    "BOFT": ({"wide.boft_R": torch.ones(4, 3, 3)}, "is BOFT, which cannot be mixed"),
    "IA3": (
        {"wide.on_input": torch.ones(()), "wide.weight": torch.ones(12)},
        "is IA3, which cannot be mixed",
    ),
    "GLoRA": (
        {"wide.a1.weight": torch.ones(2, 12), "wide.a2.weight": torch.ones(20, 2)},
        "is GLoRA, which cannot be mixed",
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_what_says_nothing_that_can_be_done_is_refused(what: str, toy: Toy, tmp_path: Path) -> None:
    tensors, why = ODD[what]
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(LoraError, match=why):
        read(toy, tmp_path / "style.safetensors")
