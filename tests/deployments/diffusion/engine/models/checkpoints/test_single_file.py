"""Single files as people have them, against the folder that holds the same weights."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from configs.app import ModelArgs, ModelUserConfig, VaeArgs
from configs.families import FAMILIES, FamilyName
from demo.single_file import clip_tensors, openclip_tensors, unet_tensors, vae_tensors
from deployments.contracts.jobs import ImageJob
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.checkpoints.checkpoint import Checkpoint, read_checkpoint
from deployments.diffusion.engine.models.checkpoints.header import WrongFile
from deployments.diffusion.engine.models.components import load
from tests.conftest import model_args

CPU = torch.device("cpu")
Tensors = dict[str, Tensor]
Change = Callable[[Tensors], Tensors]


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def checkpoint(folder: Path, family: FamilyName) -> Tensors:
    """A folder's weights under the names of the family's original checkpoints."""
    found = prefixed("model.diffusion_model.", unet_tensors(folder))
    found |= prefixed("first_stage_model.", vae_tensors(folder))
    clip = clip_tensors(folder / "text_encoder")
    if family == "sdxl":
        found |= prefixed("conditioner.embedders.0.transformer.", clip)
        second = openclip_tensors(folder / "text_encoder_2")
        return found | prefixed("conditioner.embedders.1.model.", second)
    if family == "sd15":
        return found | prefixed("cond_stage_model.transformer.", clip)
    return found | prefixed("cond_stage_model.model.", with_last_layer(openclip_h(folder)))


def openclip_h(folder: Path) -> Tensors:
    """Stable Diffusion 2's text encoder by OpenCLIP's names."""
    tensors = load_file(folder / "text_encoder" / "model.safetensors")
    width = tensors["text_model.final_layer_norm.weight"].shape[0]
    beside = folder.parent / "openclip"
    beside.mkdir(exist_ok=True)
    save_file({**tensors, "text_projection.weight": torch.eye(width)}, beside / "model.safetensors")
    return openclip_tensors(beside)


def with_last_layer(tensors: Tensors) -> Tensors:
    """OpenCLIP's file has one layer more than is read."""
    last = {
        name.replace("resblocks.1.", "resblocks.2."): tensor + 1
        for name, tensor in tensors.items()
        if "resblocks.1." in name
    }
    return tensors | last | {"logit_scale": torch.tensor(4.6)}


@pytest.fixture(scope="module")
def folders(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the bases, whose scheduler is the family's."""
    root = tmp_path_factory.mktemp("bases")
    for family in FAMILIES:
        shutil.copytree(demo_models / family, root / family)
    return root


def args_of(family: FamilyName, source: Path, configs: Path, **more: object) -> ModelArgs:
    return ModelArgs(
        name="odd",
        family=family,
        checkpoint=str(source),
        config=str(configs),
        tcd_lora=None,
        dtype="float32",
        device="cpu",
        **more,
    )


def read(args: ModelArgs) -> Checkpoint:
    return read_checkpoint(args, FAMILIES[args.family], torch.float32, CPU)


def assert_same(ours: Checkpoint, folder: Path, change: Callable[[Tensor], Tensor]) -> None:
    """By what diffusers and transformers read of the folder."""
    theirs: list[torch.nn.Module] = [
        UNet2DConditionModel.from_pretrained(folder / "unet"),
        AutoencoderKL.from_pretrained(folder / "vae"),
        CLIPTextModel.from_pretrained(folder / "text_encoder"),
    ]
    if len(ours.text_encoders) == 2:
        theirs.append(CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"))
    for mine, model in zip((ours.unet, ours.vae, *ours.text_encoders), theirs, strict=True):
        found, expected = mine.state_dict(), model.state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], change(tensor)), name
        assert not any(parameter.is_meta for parameter in mine.parameters())
        assert all(torch.equal(b, dict(model.named_buffers())[n]) for n, b in mine.named_buffers())


def same(tensors: Tensors) -> Tensors:
    return tensors


def with_ema(tensors: Tensors) -> Tensors:
    """Averaged weights under the flat names of ldm's EMA."""
    averaged = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1
        for name, tensor in tensors.items()
        if name.startswith("model.diffusion_model.")
    }
    return tensors | averaged | {"model_ema.decay": torch.tensor(0.999)}


def with_markers(tensors: Tensors) -> Tensors:
    beside = {"alphas_cumprod": torch.ones(1000), "betas": torch.ones(1000)}
    return tensors | beside | {"global_step": torch.tensor(7)}


def without_text_model(tensors: Tensors) -> Tensors:
    return {name.replace(".text_model.", "."): tensor for name, tensor in tensors.items()}


def by_transformers(folder: Path, family: FamilyName) -> Tensors:
    """Every text encoder by transformers' names, also where the original has OpenCLIP's."""
    kept = {
        name: tensor
        for name, tensor in checkpoint(folder, family).items()
        if not name.startswith(("cond_stage_model.", "conditioner."))
    }
    if family == "sdxl":
        places = {
            "text_encoder": "conditioner.embedders.0.transformer.",
            "text_encoder_2": "conditioner.embedders.1.model.",
        }
    else:
        places = {"text_encoder": "cond_stage_model.transformer."}
    for part, prefix in places.items():
        kept |= prefixed(prefix, load_file(folder / part / "model.safetensors"))
    return kept


def vae_prefix(tensors: Tensors) -> Tensors:
    return {n.replace("first_stage_model.", "vae."): tensor for n, tensor in tensors.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "change", [same, with_ema, with_markers, without_text_model, vae_prefix, None]
)
def test_a_file_is_the_folder(
    folders: Path, tmp_path: Path, family: FamilyName, change: Change | None
) -> None:
    folder, file = folders / family, tmp_path / "odd.safetensors"
    if change is None:
        tensors = by_transformers(folder, family)
    else:
        tensors = change(checkpoint(folder, family))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    assert_same(read(args_of(family, file, folder)), folder, lambda tensor: tensor)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_numbers_of_any_floating_type(folders: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder, file = folders / "sdxl", tmp_path / "odd.safetensors"
    tensors = checkpoint(folder, "sdxl")
    save_file({n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}, file)
    assert_same(
        read(args_of("sdxl", file, folder)), folder, lambda tensor: tensor.to(dtype).float()
    )


def test_the_picture_is_that_of_the_folder(folders: Path, tmp_path: Path) -> None:
    folder, file = folders / "sd15", tmp_path / "odd.safetensors"
    save_file(with_ema(checkpoint(folder, "sd15")), file)
    job = ImageJob("1", "a house", (3,), 64, 64, num_inference_steps=2)
    made = []
    for source in (folder, file):
        engine = Engine(load(args_of("sd15", source, folder)), ModelUserConfig())
        try:
            made.append(torch.from_numpy(engine.generate(job)[0].pixels.copy()))
        finally:
            engine.stop()
    assert (made[0].int() - made[1].int()).abs().max() <= 1


def test_nine_channels_are_seen_in_the_file(demo_models: Path, tmp_path: Path) -> None:
    folder, file = demo_models / "sd15-inpainting", tmp_path / "odd.safetensors"
    save_file(checkpoint(folder, "sd15"), file)
    components = load(args_of("sd15", file, demo_models / "sd15"))
    assert components.takes_mask
    expected = UNet2DConditionModel.from_pretrained(folder / "unet").conv_in.weight
    assert torch.equal(components.unet.conv_in.weight, expected)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("spelling", ["ldm", "diffusers", "old diffusers"])
def test_a_vae_of_its_own(folders: Path, tmp_path: Path, prefix: str, spelling: str) -> None:
    folder, file, vae = folders / "sd15", tmp_path / "odd.safetensors", tmp_path / "v.safetensors"
    whole = checkpoint(folder, "sd15")
    save_file({n: t for n, t in whole.items() if not n.startswith("first_stage_model.")}, file)
    if spelling == "ldm":
        tensors = vae_tensors(folder) | {"loss.logvar": torch.zeros(())}
    else:
        tensors = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    if spelling == "old diffusers":
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, name in old.items():
            tensors = {key.replace(f".{new}.", f".{name}."): t for key, t in tensors.items()}
    save_file(prefixed(prefix, tensors), vae)
    with pytest.raises(WrongFile, match=r"odd\.safetensors has no VAE: name one in vae\.source"):
        read(args_of("sd15", file, folder))
    args = args_of("sd15", file, folder, vae=VaeArgs(source=str(vae)))
    assert_same(read(args), folder, lambda tensor: tensor)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t | {"model.diffusion_model.odd.weight": torch.ones(1)},
            "unet has 'odd.weight'",
        ),
        (
            lambda t: {n: v for n, v in t.items() if "output_blocks.3.0.in_layers" not in n},
            "its unet lacks 4 tensors",
        ),
        (
            lambda t: {n: v for n, v in t.items() if "layers.0.mlp" not in n},
            "its text_encoder lacks 4 tensors",
        ),
        (
            lambda t: {n: v for n, v in t.items() if "decoder.mid" not in n},
            "vae odd.safetensors: its vae lacks",
        ),
        (
            lambda t: {
                n: torch.cat([v, v]) if n.endswith("out.2.bias") else v for n, v in t.items()
            },
            r"'conv_out.bias' of shape \(8,\)",
        ),
    ],
)
def test_nothing_is_left_over(folders: Path, tmp_path: Path, change: Change, says: str) -> None:
    file = tmp_path / "odd.safetensors"
    save_file(change(checkpoint(folders / "sd15", "sd15")), file)
    with pytest.raises(WrongFile, match=says):
        read(args_of("sd15", file, folders / "sd15"))


@pytest.mark.parametrize(
    ("marks", "metadata", "args", "expected"),
    [
        ((), {}, {}, ("epsilon", False)),
        (("v_pred",), {}, {}, ("v_prediction", False)),
        (("v_pred", "ztsnr"), {}, {}, ("v_prediction", True)),
        ((), {"modelspec.prediction_type": "v"}, {}, ("v_prediction", False)),
        ((), {"modelspec.predict_key": "v"}, {}, ("v_prediction", False)),
        ((), {"modelspec.predict_key": "epsilon"}, {}, ("epsilon", False)),
        (
            (),
            {"modelspec.architecture": "stable-diffusion-v2-768-v"},
            {},
            ("v_prediction", False),
        ),
        (("v_pred",), {"modelspec.predict_key": "epsilon"}, {}, ("v_prediction", False)),
        (("v_pred",), {}, {"prediction_type": "epsilon"}, ("epsilon", False)),
        (
            ("v_pred", "ztsnr"),
            {},
            {"rescale_betas_zero_snr": False},
            ("v_prediction", False),
        ),
        (
            (),
            {},
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            ("v_prediction", True),
        ),
    ],
)
def test_what_a_file_says_of_its_training(
    folders: Path,
    tmp_path: Path,
    marks: Iterable[str],
    metadata: dict[str, str],
    args: dict[str, object],
    expected: tuple[str, bool],
) -> None:
    file = tmp_path / "odd.safetensors"
    marked = {mark: torch.tensor([]) for mark in marks}
    save_file(checkpoint(folders / "sd15", "sd15") | marked, file, metadata=metadata or None)
    schedule = read(args_of("sd15", file, folders / "sd15", **args)).schedule
    first = schedule.steps(4, 0.3)[0]
    assert (schedule.prediction_type, first.alpha_t == 0) == expected


def test_a_folder_says_it_in_its_scheduler(folders: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folders / "sd15", tmp_path / "sd15")
    file = folder / "scheduler" / "scheduler_config.json"
    said = json.loads(file.read_text())
    said |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    file.write_text(json.dumps(said))
    args = replace_checkpoint(model_args(folders, "sd15"), folder)
    schedule = read(args).schedule
    assert schedule.prediction_type == "v_prediction"
    assert schedule.steps(4, 0.3)[0].alpha_t == 0
    with pytest.raises(WrongFile, match="set prediction_type: v_prediction, or rescale"):
        read(args.model_copy(update={"prediction_type": "epsilon"}))


def replace_checkpoint(args: ModelArgs, folder: Path) -> ModelArgs:
    return args.model_copy(update={"checkpoint": str(folder)})
