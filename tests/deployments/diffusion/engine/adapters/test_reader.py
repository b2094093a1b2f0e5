"""Adapters are read as their tensors say it: alpha / rank x up @ down, layer by layer. What
cannot serve is refused with its reason. No loader of another library is asked for strengths;
where a file's meaning is the trainer's (PEFT's configurations), PEFT's trained layer is."""

import json
import pickle
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import NamedTuple

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from configs.families import FamilyName
from demo.sgm import sgm_layer
from deployments.diffusion.engine.adapters.changes import Change, LowRank
from deployments.diffusion.engine.adapters.names import Place, adaptable
from deployments.diffusion.engine.adapters.reader import LoraError, LoraReader, LoraWeights
from tests.conftest import STYLES, demo_loras
from tests.deployments.diffusion.engine.adapters.skeletons import demo_skeletons

Tensors = dict[str, Tensor]
LAYER = "unet.mid_block.attentions.0.proj_in"
DOWN, UP = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def readers(demo_models: Path) -> Mapping[FamilyName, LoraReader]:
    families: tuple[FamilyName, ...] = ("sd15", "sd21", "sdxl")
    return {f: LoraReader(demo_skeletons(demo_models, f), torch.float32) for f in families}


@pytest.fixture
def reader(readers: Mapping[FamilyName, LoraReader]) -> LoraReader:
    return readers["sd15"]


@pytest.fixture(scope="module")
def neon(demo_models: Path) -> Tensors:
    """A style in PEFT's spelling; it adapts convolutions, attention and time embedding."""
    return load_file(demo_loras(demo_models, "sd15")["neon"])


def small() -> Tensors:
    """One adapted layer."""
    return {DOWN: torch.randn(4, 48, 1, 1), UP: torch.randn(48, 4, 1, 1)}


def saved(
    tensors: Tensors,
    folder: Path,
    name: str = "style.safetensors",
    metadata: dict[str, str] | None = None,
) -> Path:
    # Matrices of one kind may share memory in a test; a file's may not.
    save_file({n: t.clone() for n, t in tensors.items()}, folder / name, metadata)
    return folder / name


class Drawn(NamedTuple):
    """A layer's random adapter."""

    place: Place
    down: Tensor  # (rank, in) or (rank, in, kh, kw)
    up: Tensor  # (out, rank) or (out, rank, 1, 1)
    alpha: float

    @property
    def change(self) -> Tensor:
        """(out, in) or (out, in * kh * kw): what it adds to the layer's weight."""
        rank = len(self.down)
        return self.alpha / rank * self.up.flatten(1) @ self.down.flatten(1)


def draw(models: Mapping[str, nn.Module]) -> list[Drawn]:
    """An adapter of every layer, each with a rank and an alpha of its own."""
    generator = torch.Generator().manual_seed(1)
    drawn: list[Drawn] = []
    for model, module in models.items():
        for name, layer in adaptable(module):
            width, *fan_in = layer.weight.shape
            rank, alpha = 1 + len(drawn) % 5, 0.5 + len(drawn) % 3
            down = torch.randn(rank, *fan_in, generator=generator)
            up = torch.randn(width, rank, *(1 for _ in fan_in[1:]), generator=generator)
            drawn.append(Drawn(Place(model, name), down, up, alpha))
    return drawn


@pytest.fixture(scope="module")
def adapters(demo_models: Path) -> Mapping[FamilyName, list[Drawn]]:
    families: tuple[FamilyName, ...] = ("sd15", "sd21", "sdxl")
    adapters = {}
    for family in families:
        models = demo_skeletons(demo_models, family)
        models.pop("motion_unet", None)
        adapters[family] = draw(models)
    return adapters


def changes(weights: LoraWeights) -> dict[Place, Tensor]:
    """What the weights add, by layer."""
    return {
        Place(model, name): pair.up.T @ pair.down.flatten(1)
        for model, layers in weights.layers.items()
        for name, pair in ((name, matrices(layer)) for name, layer in layers.items())
    }


def matrices(layer: Change) -> LowRank:
    assert layer.low is not None
    assert layer.terms == ()
    return layer.low


def assert_changes(weights: LoraWeights, expected: Mapping[Place, Tensor]) -> None:
    found = changes(weights)
    assert found.keys() == expected.keys()
    for place, change in expected.items():
        torch.testing.assert_close(found[place], change, msg=str(place))


def underscored(name: str) -> str:
    return name.replace(".", "_")


def text_model(module: str) -> str:
    """A text encoder's layer as older transformers call it, and all trainers do."""
    return module if module.startswith("text_") else f"text_model.{module}"


def original(module: str, family: FamilyName) -> str:
    """A UNet's layer in the original code."""
    return sgm_layer(module, 1, (2,) if family == "sdxl" else (0,))


def diffusers(place: Place, family: FamilyName) -> str | None:
    return f"{place.model}.{place.module}"


def diffusers_with_text_model(place: Place, family: FamilyName) -> str | None:
    return place.model + "." + (place.module if place.model == "unet" else text_model(place.module))


def diffusers_without_text_model(place: Place, family: FamilyName) -> str | None:
    return f"{place.model}.{place.module.removeprefix('text_model.')}"


def kohya(place: Place, family: FamilyName) -> str | None:
    if place.model == "unet":
        return "lora_unet_" + underscored(place.module)
    te = {"text_encoder": "te1" if family == "sdxl" else "te", "text_encoder_2": "te2"}
    return f"lora_{te[place.model]}_{underscored(text_model(place.module))}"


def kohya_original(place: Place, family: FamilyName) -> str | None:
    if place.model == "unet":
        return "lora_unet_" + underscored(original(place.module, family))
    return kohya(place, family)


def comfy(place: Place, family: FamilyName) -> str | None:
    if place.model == "unet":
        return "diffusion_model." + original(place.module, family)
    clip = "clip_g" if place.model == "text_encoder_2" else "clip_l"
    return f"text_encoders.{clip}.transformer.{text_model(place.module)}"


def peft(place: Place, family: FamilyName) -> str | None:
    return f"base_model.model.{place.module}" if place.model == "unet" else None


def peft_in_diffusers(place: Place, family: FamilyName) -> str | None:
    return f"{place.model}.base_model.model.{place.module}"


def simpletuner(place: Place, family: FamilyName) -> str | None:
    return "lycoris_" + underscored(place.module) if place.model == "unet" else None


def bare(place: Place, family: FamilyName) -> str | None:
    return place.module if place.model == "unet" else None


def processors(place: Place, family: FamilyName) -> str | None:
    """Of diffusers' attention processors: the name ends in _lora."""
    name = diffusers_with_text_model(place, family) or ""
    parent, _, child = name.removesuffix(".0").rpartition(".")
    if ".attn" in parent:
        return f"{parent}.processor.{child}_lora"
    if parent.endswith("self_attn"):
        return f"{parent}.to_{child.removesuffix('_proj')}_lora"
    return None


Spelling = Callable[[Place, FamilyName], str | None]
SPELLINGS: dict[str, tuple[Spelling, str, str]] = {
    "kohya": (kohya, "lora_down.weight", "lora_up.weight"),
    "kohya, original UNet": (kohya_original, "lora_down.weight", "lora_up.weight"),
    "ComfyUI": (comfy, "lora_down.weight", "lora_up.weight"),
    "SimpleTuner": (simpletuner, "lora_down.weight", "lora_up.weight"),
    "diffusers": (diffusers, "lora_A.weight", "lora_B.weight"),
    "diffusers, named": (diffusers, "lora_A.my_style.weight", "lora_B.my_style.weight"),
    "diffusers, text_model": (diffusers_with_text_model, "lora_A.weight", "lora_B.weight"),
    "diffusers, no text_model": (diffusers_without_text_model, "lora_A.weight", "lora_B.weight"),
    "diffusers, one model": (bare, "lora_A.weight", "lora_B.weight"),
    "diffusers, old": (diffusers_with_text_model, "lora.down.weight", "lora.up.weight"),
    "diffusers, old text": (
        diffusers_with_text_model,
        "lora_linear_layer.down.weight",
        "lora_linear_layer.up.weight",
    ),
    "diffusers, first": (processors, "down.weight", "up.weight"),
    "PEFT": (peft, "lora_A.weight", "lora_B.weight"),
    "PEFT, named": (peft, "lora_A.default.weight", "lora_B.default.weight"),
    "PEFT within diffusers": (peft_in_diffusers, "lora_A.weight", "lora_B.weight"),
}


def spelt(
    adapter: Iterable[Drawn], family: FamilyName, spelling: str
) -> tuple[Tensors, list[Drawn]]:
    """A file's tensors in a spelling, alphas left out, and the layers that it has names for."""
    name_of, down, up = SPELLINGS[spelling]
    tensors: Tensors = {}
    named = []
    for drawn in adapter:
        name = name_of(drawn.place, family)
        if name is not None:
            tensors[f"{name}.{down}"] = drawn.down
            tensors[f"{name}.{up}"] = drawn.up
            named.append(drawn)
    return tensors, named


def alphas(adapter: Iterable[Drawn], family: FamilyName, spelling: str) -> Tensors:
    """The tensors of the layers' alphas."""
    name_of, _, _ = SPELLINGS[spelling]
    named = [(name_of(drawn.place, family), drawn.alpha) for drawn in adapter]
    return {f"{name}.alpha": torch.tensor(alpha) for name, alpha in named if name is not None}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_every_layer_by_its_own_alpha_and_rank_in_every_spelling(
    family: FamilyName,
    spelling: str,
    adapters: Mapping[FamilyName, list[Drawn]],
    readers: Mapping[FamilyName, LoraReader],
    tmp_path: Path,
) -> None:
    tensors, named = spelt(adapters[family], family, spelling)
    assert len(named) > 20
    if spelling.startswith(("kohya", "ComfyUI", "diffusers, old")):
        assert {drawn.place.model for drawn in named} == {d.place.model for d in adapters[family]}
    file = saved(tensors | alphas(named, family, spelling), tmp_path)
    assert_changes(readers[family].read(file), {d.place: d.change for d in named})


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_layer_without_alpha_is_not_scaled(
    spelling: str,
    adapters: Mapping[FamilyName, list[Drawn]],
    reader: LoraReader,
    tmp_path: Path,
) -> None:
    tensors, named = spelt(adapters["sd15"], "sd15", spelling)
    with_alpha, without = named[::2], named[1::2]
    file = saved(tensors | alphas(with_alpha, "sd15", spelling), tmp_path)
    expected = {d.place: d.change for d in with_alpha}
    expected |= {d.place: d._replace(alpha=len(d.down)).change for d in without}
    assert_changes(reader.read(file), expected)


def test_a_convolution_of_one_pixel_is_a_linear_layer_and_the_other_way_round(
    adapters: Mapping[FamilyName, list[Drawn]],
    readers: Mapping[FamilyName, LoraReader],
    tmp_path: Path,
) -> None:
    for family in ("sd15", "sdxl"):
        turned = [
            d._replace(down=d.down[..., 0, 0], up=d.up[..., 0, 0])
            if d.down.shape[2:] == (1, 1)
            else d._replace(down=d.down[..., None, None], up=d.up[..., None, None])
            if d.down.ndim == 2
            else d
            for d in adapters[family]
        ]
        assert {d.down.ndim for d in turned} == {2, 4}
        file = saved(spelt(turned, family, "diffusers")[0], tmp_path)
        weights = readers[family].read(file)
        assert_changes(weights, {d.place: d._replace(alpha=len(d.down)).change for d in turned})
        for d in adapters[family]:
            layer = matrices(weights.layers[d.place.model][d.place.module])
            assert layer.down.shape == d.down.shape, "as the model's layer is"
            assert layer.up.shape == (len(d.down), len(d.up))


def test_an_adapter_goes_to_the_unet_with_motion(reader: LoraReader, demo_models: Path) -> None:
    zoom = demo_models / "motion-loras" / "zoom-in.safetensors"
    weights = reader.read(zoom, unet="motion_unet")
    assert {model for model, layers in weights.layers.items() if layers} == {"motion_unet"}
    tensors = load_file(zoom)
    assert 2 * len(weights.layers["motion_unet"]) == len(tensors)
    name = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1"
    lora = f"unet.{name}.processor.to_out_lora"
    torch.testing.assert_close(
        changes(weights)[Place("motion_unet", f"{name}.to_out.0")],
        tensors[f"{lora}.up.weight"] @ tensors[f"{lora}.down.weight"],
    )
    with pytest.raises(LoraError, match="looks like one for AnimateDiff"):
        reader.read(zoom)


# Recorded alphas: PEFT trains, PEFT or diffusers writes, and PEFT's own layers say what it means.

TARGETS = ("to_k", "to_out.0", "conv1", "proj_in", "conv_in")
CONFIGS: dict[str, Callable[..., LoraConfig]] = {
    "one alpha": partial(LoraConfig, r=4, lora_alpha=6),
    "rsLoRA": partial(LoraConfig, r=4, lora_alpha=6, use_rslora=True),
    "patterns": partial(
        LoraConfig,
        r=4,
        lora_alpha=6,
        rank_pattern={"to_k": 2, "down_blocks.1.resnets.0.conv1": 3, "^conv_in": 1},
        alpha_pattern={
            "attn1.to_k": 5,
            "to_k": 7,
            "down_blocks.1.resnets.0.conv1": 2,
            "^conv_in": 9,
            r"up_blocks\.\d+\.resnets\.0\.conv1": 11,
        },
    ),
    "patterns with rsLoRA": partial(
        LoraConfig,
        r=4,
        lora_alpha=6,
        use_rslora=True,
        rank_pattern={"to_k": 2},
        alpha_pattern={"to_k": 7},
    ),
}


def trained(
    folder: Path, config: LoraConfig
) -> tuple[UNet2DConditionModel, PeftModel, dict[Place, Tensor]]:
    """A UNet and it under PEFT, with random adapters, and what these add."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    wrapped = get_peft_model(unet, config)
    generator = torch.Generator().manual_seed(0)
    expected = {}
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer):
            module.lora_B["default"].weight.data.normal_(generator=generator)
            change: Tensor = module.get_delta_weight("default").detach()
            expected[Place("unet", name)] = change.flatten(1)
    return unet, wrapped, expected


@pytest.mark.parametrize("case", CONFIGS)
def test_the_configuration_beside_pefts_own_file(
    case: str, reader: LoraReader, demo_models: Path, tmp_path: Path
) -> None:
    config = CONFIGS[case](target_modules=TARGETS)
    _, wrapped, expected = trained(demo_models / "sd15", config)
    wrapped.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").exists()
    assert_changes(reader.read(tmp_path), expected)


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("whole", [True, False], ids=["pipeline", "unet"])
def test_the_configuration_in_diffusers_header(
    whole: bool, case: str, reader: LoraReader, demo_models: Path, tmp_path: Path
) -> None:
    config = CONFIGS[case](target_modules=TARGETS)
    unet, _, expected = trained(demo_models / "sd15", config)
    if whole:
        fields = config.to_dict()
        fields["target_modules"] = sorted(fields["target_modules"])
        StableDiffusionPipeline.save_lora_weights(
            tmp_path,
            unet_lora_layers=get_peft_model_state_dict(unet),
            unet_lora_adapter_metadata=fields,
        )
    else:
        unet.save_lora_adapter(tmp_path)
    assert_changes(reader.read(tmp_path), expected)


def test_a_tensor_of_alpha_counts_before_what_is_recorded(
    reader: LoraReader, tmp_path: Path
) -> None:
    tensors = small() | {f"{LAYER}.alpha": torch.tensor(2.0)}
    header = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 12, "unet.r": 4})}
    layer = matrices(
        *reader.read(saved(tensors, tmp_path, metadata=header)).layers["unet"].values()
    )
    torch.testing.assert_close(layer.up, 2 / 4 * tensors[UP].flatten(1).T)


def test_each_encoder_by_its_own_record(
    readers: Mapping[FamilyName, LoraReader],
    adapters: Mapping[FamilyName, list[Drawn]],
    tmp_path: Path,
) -> None:
    record = {
        "text_encoder.lora_alpha": 3,
        "text_encoder_2.lora_alpha": 5,
        "text_encoder_2.alpha_pattern": {"text_model.encoder.layers.0.mlp.fc1": 7, "fc2": 8},
    }
    header = {"lora_adapter_metadata": json.dumps(record)}
    tensors, named = spelt(adapters["sdxl"], "sdxl", "diffusers, text_model")

    def alpha(drawn: Drawn) -> float:
        if drawn.place.model == "unet":
            return len(drawn.down)
        if drawn.place.model == "text_encoder":
            return 3
        if drawn.place.module == "text_model.encoder.layers.0.mlp.fc1":
            return 7
        return 8 if drawn.place.module.endswith(".fc2") else 5

    weights = readers["sdxl"].read(saved(tensors, tmp_path, metadata=header))
    assert_changes(weights, {d.place: d._replace(alpha=alpha(d)).change for d in named})


def test_a_configuration_beside_a_file_that_peft_did_not_write_is_not_its_own(
    reader: LoraReader, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 400}))
    tensors = small()
    layer = matrices(*reader.read(saved(tensors, tmp_path)).layers["unet"].values())
    assert torch.equal(layer.up, tensors[UP].flatten(1).T)


@pytest.mark.parametrize(
    "record", ["{", "[]", '{"unet.lora_alpha": "much"}', '{"unet.alpha_pattern": {"[": 1}}']
)
def test_a_record_that_cannot_be_read_is_refused(
    record: str, reader: LoraReader, tmp_path: Path
) -> None:
    file = saved(small(), tmp_path, metadata={"lora_adapter_metadata": record})
    with pytest.raises(LoraError, match=r"what style\.safetensors says of alpha cannot be read"):
        reader.read(file)
    saved(small() | {f"{LAYER}.alpha": torch.tensor(2.0)}, tmp_path)
    assert reader.read(file).nbytes > 0, "where it is not needed, it does no harm"


def test_a_pattern_without_end_is_refused(reader: LoraReader, tmp_path: Path) -> None:
    record = json.dumps({"unet.alpha_pattern": {"(.*)" * 7 + r"\3\4[xyz]{2}": 1}})
    file = saved(small(), tmp_path, metadata={"lora_adapter_metadata": record})
    with pytest.raises(LoraError, match="takes too long to read"):
        reader.read(file)


# Numbers


@pytest.mark.parametrize("alpha", [None, 3.0], ids=["no alpha", "alpha"])
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_numbers_are_rounded_once(
    stored: torch.dtype,
    target: torch.dtype,
    alpha: float | None,
    demo_models: Path,
    tmp_path: Path,
) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in small().items()}
    extra = {} if alpha is None else {f"{LAYER}.alpha": torch.tensor(alpha)}
    reader = LoraReader({"unet": demo_skeletons(demo_models, "sd15")["unet"]}, target)
    weights = reader.read(saved(tensors | extra, tmp_path))
    layer = matrices(*weights.layers["unet"].values())
    assert layer.down.dtype == layer.up.dtype == weights.flat.dtype == target
    assert torch.equal(layer.down, tensors[DOWN].to(target))
    scaled = (alpha or 4.0) / 4 * tensors[UP].float().flatten(1).T
    assert torch.equal(layer.up, scaled.to(target))


def test_large_matrices_are_whole(tmp_path: Path) -> None:
    """They are written piece by piece."""
    model = nn.ModuleDict({"wide": nn.Linear(40_000, 3), "tall": nn.Linear(3, 40_000)})
    expected: dict[Place, Tensor] = {}
    tensors: Tensors = {}
    for name, layer in adaptable(model):
        width, fan_in = layer.weight.shape
        down, up = torch.randn(7, fan_in), torch.randn(width, 7)
        tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        tensors[f"unet.{name}.alpha"] = torch.tensor(14.0)
        expected[Place("unet", name)] = 2 * up @ down
    reader = LoraReader({"unet": model}, torch.float32)
    assert_changes(reader.read(saved(tensors, tmp_path)), expected)


def test_everything_lies_in_one_buffer(
    adapters: Mapping[FamilyName, list[Drawn]], reader: LoraReader, tmp_path: Path
) -> None:
    file = saved(spelt(adapters["sd15"], "sd15", "kohya")[0], tmp_path)
    weights = reader.read(file)
    numbers = sum(d.down.numel() + d.up.numel() for d in adapters["sd15"])
    assert weights.flat.shape == (numbers,)
    assert weights.nbytes == numbers * 4
    pairs = [matrices(layer) for layers in weights.layers.values() for layer in layers.values()]
    found = [matrix for pair in pairs for matrix in (pair.down, pair.up)]
    assert all(matrix.is_contiguous() for matrix in found)
    storage = weights.flat.untyped_storage().data_ptr()
    assert all(matrix.untyped_storage().data_ptr() == storage for matrix in found)
    spans = sorted((m.storage_offset(), m.storage_offset() + m.numel()) for m in found)
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]


def test_matrices_start_where_vectors_are_read(tmp_path: Path) -> None:
    """One layer of few channels does not put all behind it at odd addresses."""
    model = nn.ModuleDict({"a": nn.Linear(9, 8), "b": nn.Linear(8, 8), "c": nn.Linear(16, 8)})
    tensors: Tensors = {}
    for name, layer in adaptable(model):
        tensors[f"{name}.lora_A.weight"] = torch.randn(1, layer.weight.shape[1])
        tensors[f"{name}.lora_B.weight"] = torch.randn(8, 1)
    weights = LoraReader({"unet": model}, torch.float16).read(saved(tensors, tmp_path))
    for name in ("b", "c"):
        pair = matrices(weights.layers["unet"][name])
        assert pair.down.data_ptr() % 16 == pair.up.data_ptr() % 16 == 0


def test_it_moves_as_one(
    adapters: Mapping[FamilyName, list[Drawn]], reader: LoraReader, tmp_path: Path
) -> None:
    weights = reader.read(saved(spelt(adapters["sd15"], "sd15", "kohya")[0], tmp_path))
    there = weights.to(torch.device("meta"))
    assert there.nbytes == weights.nbytes
    assert there.layers.keys() == weights.layers.keys()
    for model, layers in weights.layers.items():
        assert list(there.layers[model]) == list(layers)
        for name, layer in ((name, matrices(layer)) for name, layer in layers.items()):
            moved = matrices(there.layers[model][name])
            assert moved.down.is_meta
            assert moved.down._base is there.flat
            assert (moved.down.shape, moved.up.shape) == (layer.down.shape, layer.up.shape)
    again = LoraWeights(weights.flat.clone(), weights.layers).to(CPU)
    assert_changes(again, changes(weights))


@pytest.mark.parametrize("name", STYLES)
def test_every_style_of_the_demo_is_read(name: str, reader: LoraReader, demo_models: Path) -> None:
    source = Path(demo_loras(demo_models, "sd15")[name])
    weights = reader.read(source)
    assert len(weights.layers["unet"]) > 50
    assert bool(weights.layers["text_encoder"]) == (name == "ink")
    assert not weights.layers["motion_unet"]
    numbers = [t for n, t in load_file(source).items() if not n.endswith(".alpha")]
    assert weights.nbytes == sum(t.numel() for t in numbers) * 4


def test_several_threads_read_at_once(reader: LoraReader, demo_models: Path) -> None:
    sources = [Path(source) for source in demo_loras(demo_models, "sd15").values()] * 3
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(reader.read, sources))
    for source, weights in zip(sources, together, strict=True):
        assert torch.equal(weights.flat, reader.read(source).flat)


def test_the_models_are_not_kept(demo_models: Path) -> None:
    models = demo_skeletons(demo_models, "sd15")
    unet = weakref.ref(models["unet"])
    reader = LoraReader(models, torch.float32)
    models.clear()
    assert unet() is None
    assert reader.read(Path(demo_loras(demo_models, "sd15")["neon"])).nbytes > 0


# Files


def test_a_folder_with_one_file_is_read(reader: LoraReader, tmp_path: Path) -> None:
    saved(small(), tmp_path, "whatever.safetensors")
    assert len(reader.read(tmp_path).layers["unet"]) == 1


def test_in_a_folder_the_usual_name_wins(reader: LoraReader, tmp_path: Path) -> None:
    saved({"nothing.of.use": torch.zeros(1)}, tmp_path, "a.safetensors")
    saved(small(), tmp_path, "pytorch_lora_weights.safetensors")
    assert len(reader.read(tmp_path).layers["unet"]) == 1


@pytest.mark.parametrize("files", [[], ["a.safetensors", "b.safetensors"]])
def test_in_a_folder_it_must_be_clear_which_file(
    files: list[str], reader: LoraReader, tmp_path: Path
) -> None:
    for name in files:
        saved(small(), tmp_path, name)
    with pytest.raises(LoraError, match=f"holds {len(files)} safetensors files"):
        reader.read(tmp_path)


def test_a_missing_file_is_refused(reader: LoraReader, tmp_path: Path) -> None:
    with pytest.raises(LoraError, match="does not exist"):
        reader.read(tmp_path / "nowhere.safetensors")


def test_no_pickle_is_ever_opened(reader: LoraReader, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
            return Path.touch, (tmp_path / "sprung",)

    for name in ("style.bin", "style.pt", "style.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(LoraError, match=r"is a pickle|not a readable safetensors file"):
            reader.read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_a_text_that_calls_itself_safetensors_is_refused(
    reader: LoraReader, tmp_path: Path
) -> None:
    file = tmp_path / "style.safetensors"
    file.write_text("<html>404 not found</html>" * 100)
    with pytest.raises(LoraError, match=r"style\.safetensors is not a readable safetensors file"):
        reader.read(file)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(
    share: float, neon: Tensors, reader: LoraReader, tmp_path: Path
) -> None:
    file = saved(neon, tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(LoraError, match="not a readable safetensors file"):
        reader.read(file)


# What cannot serve


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [DOWN, UP])
def test_numbers_that_are_not_finite_are_refused(
    number: float, name: str, reader: LoraReader, tmp_path: Path
) -> None:
    tensors = small()
    tensors[name].view(-1)[7] = number
    with pytest.raises(LoraError, match=r"not finite in torch\.float32"):
        reader.read(saved(tensors, tmp_path))


def test_numbers_that_the_model_cannot_hold_are_refused(demo_models: Path, tmp_path: Path) -> None:
    unet = {"unet": demo_skeletons(demo_models, "sd15")["unet"]}
    tensors = small()
    tensors[UP][3] = 70_000.0
    file = saved(tensors, tmp_path)
    with pytest.raises(LoraError, match=r"not finite in torch\.float16"):
        LoraReader(unet, torch.float16).read(file)
    assert LoraReader(unet, torch.bfloat16).read(file).nbytes > 0


def test_an_alpha_that_is_not_finite_is_refused(
    reader: LoraReader, demo_models: Path, tmp_path: Path
) -> None:
    kohya = load_file(demo_loras(demo_models, "sd15")["papercut"])
    odd = {n: torch.tensor(float("nan")) if n.endswith("alpha") else t for n, t in kohya.items()}
    with pytest.raises(LoraError, match="not finite"):
        reader.read(saved(odd, tmp_path))


@pytest.mark.parametrize("tensors", [{"conv_in.weight": torch.zeros(3)}, {}])
def test_a_file_without_an_adapters_weights_is_refused(
    tensors: Tensors, reader: LoraReader, tmp_path: Path
) -> None:
    with pytest.raises(LoraError, match="holds no adapter's weights"):
        reader.read(saved(tensors, tmp_path))


def test_nothing_in_a_file_is_passed_over_in_silence(reader: LoraReader, tmp_path: Path) -> None:
    with pytest.raises(LoraError, match="no part of a known adapter"):
        reader.read(saved({**small(), "unet.conv_in.strange": torch.zeros(3)}, tmp_path))


def test_a_layer_that_stands_there_twice_is_refused(reader: LoraReader, tmp_path: Path) -> None:
    twice = small() | {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": small()[DOWN]}
    with pytest.raises(LoraError, match="has a layer twice"):
        reader.read(saved(twice, tmp_path))


def test_names_without_a_model_are_the_unets(
    neon: Tensors, reader: LoraReader, tmp_path: Path
) -> None:
    bare = {name.removeprefix("unet."): tensor for name, tensor in neon.items()}
    named = reader.read(saved(neon, tmp_path, "named.safetensors"))
    assert_changes(reader.read(saved(bare, tmp_path)), changes(named))


ODD_LAYERS: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "a layer that the model has not": (
        r"1 of which this model lacks \('unet.nowhere' for one\)",
        lambda whole: {
            **whole,
            "unet.nowhere.lora_A.weight": torch.zeros(4, 8),
            "unet.nowhere.lora_B.weight": torch.zeros(8, 4),
        },
    ),
    "another shape": (
        r"unet.mid_block.attentions.0.proj_in: \(4, 47, 1, 1\) and \(48, 4, 1, 1\) for a layer of",
        lambda whole: {**whole, DOWN: torch.zeros(4, 47, 1, 1)},
    ),
    "another width": ("proj_in", lambda whole: {**whole, UP: torch.zeros(47, 4, 1, 1)}),
    "another kernel": ("proj_in", lambda whole: {**whole, DOWN: torch.zeros(4, 48, 3, 3)}),
    "two ranks": ("proj_in", lambda whole: {**whole, UP: torch.zeros(48, 3, 1, 1)}),
    "one number": ("proj_in", lambda whole: {**whole, DOWN: torch.zeros(())}),
    "no up-projection": (
        "proj_in: no up-projection",
        lambda whole: {n: t for n, t in whole.items() if n != UP},
    ),
    "no down-projection": (
        "proj_in: no down-projection",
        lambda whole: {n: t for n, t in whole.items() if n != DOWN},
    ),
    "no rank": (
        "proj_in",
        lambda whole: {**whole, DOWN: torch.zeros(0, 48, 1, 1), UP: torch.zeros(48, 0, 1, 1)},
    ),
    "several alphas": (
        r"proj_in: \(2,\) as alpha",
        lambda whole: {**whole, f"{LAYER}.alpha": torch.ones(2)},
    ),
    "whole numbers": (
        r"numbers in torch\.int32",
        lambda whole: {n: t.to(torch.int32) for n, t in whole.items()},
    ),
    "a token embedding": (
        "adapts 1 layers, 1 of which this model lacks",
        lambda _: {
            f"text_encoder.text_model.embeddings.token_embedding.lora_{x}.weight": torch.zeros(4, 4)
            for x in "AB"
        },
    ),
    "the VAE": (
        "vae.",
        lambda whole: {n.replace("unet.", "vae."): t for n, t in whole.items()},
    ),
}


@pytest.mark.parametrize("case", ODD_LAYERS)
def test_layers_that_do_not_fit_are_refused(
    case: str, neon: Tensors, reader: LoraReader, tmp_path: Path
) -> None:
    reason, odd = ODD_LAYERS[case]
    with pytest.raises(LoraError, match="another family") as refusal:
        reader.read(saved(odd(neon | small()), tmp_path))
    assert refusal.match(reason)
    assert reader.read(saved(neon, tmp_path)).nbytes > 0, "the reader is as good as new"


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("family", ["sd21", "sdxl"])
def test_an_adapter_of_another_family_is_refused(
    family: str, name: str, reader: LoraReader, demo_models: Path
) -> None:
    with pytest.raises(LoraError, match=r"another family|looks like one for sdxl"):
        reader.read(demo_models / "loras" / family / f"{name}.safetensors")


def test_the_reader_of_sdxl_refuses_the_older_families(
    readers: Mapping[FamilyName, LoraReader], demo_models: Path
) -> None:
    reader = readers["sdxl"]
    for name in STYLES:
        with pytest.raises(LoraError, match="another family"):
            reader.read(demo_models / "loras" / "sd15" / f"{name}.safetensors")
        assert reader.read(demo_models / "loras" / "sdxl" / f"{name}.safetensors").nbytes


def test_a_file_that_is_written_while_it_is_read_ends_nobody(
    demo_models: Path, tmp_path: Path
) -> None:
    """A mapped file that is cut short ends the process that reads it by SIGBUS."""
    file = tmp_path / "style.safetensors"
    whole = Path(demo_loras(demo_models, "sd15")["neon"]).read_bytes()
    file.write_bytes(whole)
    reader = LoraReader(demo_skeletons(demo_models, "sd15"), torch.float32)
    expected = reader.read(file).flat
    stop = Event()

    def rewrite() -> None:
        while not stop.is_set():
            file.write_bytes(whole)  # cut to nothing first, as `cp` does it
            stop.wait(0.005)

    writer = Thread(target=rewrite)
    writer.start()
    tries = read = 0
    until = monotonic() + 60
    try:
        # It may be that nobody is writing, and the file is cut, for longer than many tries take.
        while tries < 100 or (not read and monotonic() < until):
            tries += 1
            try:
                assert torch.equal(reader.read(file).flat, expected)
                read += 1
            except LoraError:
                continue
    finally:
        stop.set()
        writer.join()
    assert read > 0
