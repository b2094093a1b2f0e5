"""Adapters are read as diffusers reads them; what cannot serve is refused with its reason."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deployments.diffusion.engine.adapters.reader import LoraError, LoraReader
from deployments.diffusion.engine.models.components import Components, load
from tests.conftest import STYLES, demo_loras, model_args

Tensors = dict[str, Tensor]
LAYER = "unet.mid_block.attentions.0.proj_in"
DOWN, UP = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"


@pytest.fixture(scope="module")
def components(demo_models: Path) -> Components:
    return load(model_args(demo_models, "sd15"))


@pytest.fixture
def reader(components: Components) -> LoraReader:
    return components.lora_reader


@pytest.fixture(scope="module")
def neon(demo_models: Path) -> Tensors:
    """A style in PEFT's spelling; it adapts convolutions, attention and time embedding."""
    return load_file(demo_loras(demo_models, "sd15")["neon"])


def small() -> Tensors:
    """One adapted layer."""
    return {DOWN: torch.randn(4, 48, 1, 1), UP: torch.randn(48, 4, 1, 1)}


def saved(tensors: Tensors, folder: Path, name: str = "style.safetensors") -> Path:
    save_file(tensors, folder / name)
    return folder / name


@pytest.mark.parametrize("name", STYLES)
def test_every_spelling_of_the_demo_is_read(
    name: str, reader: LoraReader, demo_models: Path
) -> None:
    source = Path(demo_loras(demo_models, "sd15")[name])
    weights = reader.read(source, "key")
    assert len(weights.layers["unet"]) > 50
    assert bool(weights.layers["text_encoder"]) == (name == "ink")
    numbers = [t for n, t in load_file(source).items() if not n.endswith(".alpha")]
    assert weights.nbytes == sum(t.numel() for t in numbers) * 4


def test_it_is_read_the_same_a_second_time_and_under_another_key(
    reader: LoraReader, demo_models: Path
) -> None:
    source = Path(demo_loras(demo_models, "sd15")["papercut"])
    first, second = reader.read(source, "one"), reader.read(source, "two")
    assert first.nbytes == second.nbytes
    for name, layer in first.layers["unet"].items():
        other = second.layers["unet"][name]
        assert torch.equal(layer.lora_A["one"].weight, other.lora_A["two"].weight)
        assert torch.equal(layer.lora_B["one"].weight, other.lora_B["two"].weight)


def test_reading_leaves_the_model_that_serves_alone(
    components: Components, demo_models: Path
) -> None:
    before = {name: id(module) for name, module in components.unet.named_modules()}
    components.lora_reader.read(Path(demo_loras(demo_models, "sd15")["neon"]), "key")
    assert {name: id(module) for name, module in components.unet.named_modules()} == before


def test_half_precision_files_are_brought_to_the_models_precision(
    reader: LoraReader, tmp_path: Path
) -> None:
    file = saved({name: tensor.half() for name, tensor in small().items()}, tmp_path)
    weights = reader.read(file, "key")
    (layer,) = weights.layers["unet"].values()
    assert layer.lora_A["key"].weight.dtype == torch.float32
    assert weights.nbytes == 2 * 4 * 48 * 4


def test_a_folder_with_one_file_is_read(reader: LoraReader, tmp_path: Path) -> None:
    saved(small(), tmp_path, "whatever.safetensors")
    assert len(reader.read(tmp_path, "key").layers["unet"]) == 1


def test_in_a_folder_the_usual_name_wins(reader: LoraReader, tmp_path: Path) -> None:
    saved({"nothing.of.use": torch.zeros(1)}, tmp_path, "a.safetensors")
    saved(small(), tmp_path, "pytorch_lora_weights.safetensors")
    assert len(reader.read(tmp_path, "key").layers["unet"]) == 1


@pytest.mark.parametrize("files", [[], ["a.safetensors", "b.safetensors"]])
def test_in_a_folder_it_must_be_clear_which_file(
    files: list[str], reader: LoraReader, tmp_path: Path
) -> None:
    for name in files:
        saved(small(), tmp_path, name)
    with pytest.raises(LoraError, match=f"holds {len(files)} safetensors files"):
        reader.read(tmp_path, "key")


def test_a_missing_file_is_refused(reader: LoraReader, tmp_path: Path) -> None:
    with pytest.raises(LoraError, match="does not exist"):
        reader.read(tmp_path / "nowhere.safetensors", "key")


def test_no_pickle_is_ever_opened(reader: LoraReader, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
            return Path.touch, (tmp_path / "sprung",)

    for name in ("style.bin", "style.pt", "style.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(LoraError, match=r"not a (readable )?safetensors file"):
            reader.read(tmp_path / name, "key")
    assert not (tmp_path / "sprung").exists()


def test_a_text_that_calls_itself_safetensors_is_refused(
    reader: LoraReader, tmp_path: Path
) -> None:
    file = tmp_path / "style.safetensors"
    file.write_text("<html>404 not found</html>" * 100)
    with pytest.raises(LoraError, match=r"style\.safetensors is not a readable safetensors file"):
        reader.read(file, "key")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(
    share: float, neon: Tensors, reader: LoraReader, tmp_path: Path
) -> None:
    file = saved(neon, tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(LoraError, match="not a readable safetensors file"):
        reader.read(file, "key")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [DOWN, UP])
def test_numbers_that_are_not_finite_are_refused(
    number: float, name: str, reader: LoraReader, tmp_path: Path
) -> None:
    tensors = small()
    tensors[name].view(-1)[7] = number
    with pytest.raises(LoraError, match="not finite"):
        reader.read(saved(tensors, tmp_path), "key")


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning")
def test_an_alpha_that_is_not_finite_is_refused(
    reader: LoraReader, demo_models: Path, tmp_path: Path
) -> None:
    kohya = load_file(demo_loras(demo_models, "sd15")["papercut"])
    odd = {n: torch.tensor(float("nan")) if n.endswith("alpha") else t for n, t in kohya.items()}
    with pytest.raises(LoraError, match="not finite"):
        reader.read(saved(odd, tmp_path), "key")


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "DoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "LoKr"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_mid.weight", "middle layer"),
    ],
)
def test_other_kinds_of_adapters_are_named(
    extra: str, kind: str, reader: LoraReader, tmp_path: Path
) -> None:
    with pytest.raises(LoraError, match=rf"style\.safetensors is .*{kind}"):
        reader.read(saved({**small(), extra: torch.zeros(4, 4)}, tmp_path), "key")


def test_a_file_without_lora_weights_is_refused(reader: LoraReader, tmp_path: Path) -> None:
    with pytest.raises(LoraError, match="holds no LoRA weights"):
        reader.read(saved({"conv_in.weight": torch.zeros(3)}, tmp_path), "key")


@pytest.mark.parametrize("extra", ["unet.conv_in.diff", "bundle_emb.face.string_to_param.*"])
def test_nothing_in_a_file_is_passed_over_in_silence(
    extra: str, reader: LoraReader, tmp_path: Path
) -> None:
    with pytest.raises(LoraError, match="no part of a plain LoRA"):
        reader.read(saved({**small(), extra: torch.zeros(3)}, tmp_path), "key")


ODD_LAYERS: dict[str, Callable[[Tensors], Tensors]] = {
    "a layer that the model has not": lambda whole: {
        **whole,
        "unet.nowhere.lora_A.weight": torch.zeros(4, 8),
        "unet.nowhere.lora_B.weight": torch.zeros(8, 4),
    },
    "another shape": lambda whole: {**whole, DOWN: torch.zeros(4, 47, 1, 1)},
    "no up-projection": lambda whole: {n: t for n, t in whole.items() if n != UP},
    "no down-projection": lambda whole: {n: t for n, t in whole.items() if n != DOWN},
    "no rank": lambda whole: {
        **whole,
        DOWN: torch.zeros(0, 48, 1, 1),
        UP: torch.zeros(48, 0, 1, 1),
    },
    "whole numbers": lambda whole: {n: t.to(torch.int32) for n, t in whole.items()},
    "a token embedding": lambda _: {
        f"text_encoder.text_model.embeddings.token_embedding.lora_{x}.weight": torch.zeros(4, 4)
        for x in "AB"
    },
    "no names of models": lambda whole: {n.removeprefix("unet."): t for n, t in whole.items()},
    "the VAE": lambda whole: {n.replace("unet.", "vae."): t for n, t in whole.items()},
}


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("case", ODD_LAYERS)
def test_layers_that_do_not_fit_are_refused(
    case: str, neon: Tensors, reader: LoraReader, tmp_path: Path
) -> None:
    with pytest.raises(LoraError, match="another family"):
        reader.read(saved(ODD_LAYERS[case](neon | small()), tmp_path), "key")
    assert reader.read(saved(neon, tmp_path), "key").nbytes > 0, "the reader is as good as new"


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("family", ["sd21", "sdxl"])
def test_an_adapter_of_another_family_is_refused(
    family: str, name: str, reader: LoraReader, demo_models: Path
) -> None:
    with pytest.raises(LoraError, match="another family"):
        reader.read(demo_models / "loras" / family / f"{name}.safetensors", "key")


def test_the_reader_of_sdxl_refuses_the_older_families(demo_models: Path) -> None:
    reader = load(model_args(demo_models, "sdxl")).lora_reader
    for name in STYLES:
        with pytest.raises(LoraError, match="another family"):
            reader.read(demo_models / "loras" / "sd15" / f"{name}.safetensors", "key")
        assert reader.read(demo_models / "loras" / "sdxl" / f"{name}.safetensors", "key").nbytes
