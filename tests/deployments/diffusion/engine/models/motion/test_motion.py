"""Motion adapters as files have them: by diffusers' own reading, and every reason to refuse one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from safetensors.torch import save_file
from torch import Tensor

from deployments.diffusion.engine.models.motion.motion import Motion, load_motion

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def unet(demo_models: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(demo_models / "sd15" / "unet")


@pytest.fixture(scope="module")
def adapter(demo_models: Path) -> MotionAdapter:
    return MotionAdapter.from_pretrained(demo_models / "motion-adapter" / "sd15")


@pytest.fixture(scope="module")
def theirs(unet: UNet2DConditionModel, adapter: MotionAdapter) -> Tensors:
    """diffusers' UNet with motion layers."""
    tensors: Tensors = UNetMotionModel.from_unet2d(unet, adapter).state_dict()
    return tensors


def read(source: Path, unet: UNet2DConditionModel) -> Motion:
    return load_motion(str(source), unet, None, torch.float32)


def animatediff_names(tensors: Tensors) -> Tensors:
    """As AnimateDiff publishes them: another word in between, a table of positions for each
    attention."""
    said: Tensors = {}
    for name, tensor in tensors.items():
        block, _, rest = name.partition(".motion_modules.")
        place, _, inner = rest.partition(".")
        inner = inner.replace("attn1.", "attention_blocks.0.").replace("norm1.", "norms.0.")
        inner = inner.replace("attn2.", "attention_blocks.1.").replace("norm2.", "norms.1.")
        inner = inner.replace("norm3.", "ff_norm.")
        for number in (0, 1):
            table = inner.replace("pos_embed.", f"attention_blocks.{number}.pos_encoder.")
            said[f"{block}.motion_modules.{place}.temporal_transformer.{table}"] = tensor.clone()
    return said


def of_a_trainer(tensors: Tensors) -> Tensors:
    """As data-parallel training leaves them."""
    return {f"module.{name}": tensor for name, tensor in animatediff_names(tensors).items()}


@pytest.mark.parametrize("written", [dict, animatediff_names, of_a_trainer])
def test_one_file(
    written: Callable[[Tensors], Tensors],
    unet: UNet2DConditionModel,
    adapter: MotionAdapter,
    theirs: Tensors,
    tmp_path: Path,
) -> None:
    """Heads and groups are nowhere in it."""
    file = tmp_path / "motion.safetensors"
    save_file(written(adapter.state_dict()), file)
    for source in (file, tmp_path):
        ours = read(source, unet).unet
        assert ours.config.motion_max_seq_length == adapter.config.motion_max_seq_length
        assert ours.config.motion_num_attention_heads == adapter.config.motion_num_attention_heads
        tensors = ours.state_dict()
        assert tensors.keys() == theirs.keys()
        assert all(torch.equal(tensors[name], theirs[name]) for name in theirs)


def test_one_without_a_middle_or_positions_in_half_precision(
    unet: UNet2DConditionModel, adapter: MotionAdapter, tmp_path: Path
) -> None:
    """As of AnimateDiff's third version, converted."""
    file = tmp_path / "v3.safetensors"
    kept = {
        name: tensor.half()
        for name, tensor in adapter.state_dict().items()
        if not (name.startswith("mid_block.") or name.endswith("pos_embed.pe"))
    }
    save_file(animatediff_names(kept), file)
    ours = read(file, unet).unet
    assert not ours.config.use_motion_mid_block
    assert ours.config.motion_max_seq_length == 32
    for name, tensor in kept.items():
        assert torch.equal(ours.get_parameter(name), tensor.float())


def test_a_folder(unet: UNet2DConditionModel, theirs: Tensors, demo_models: Path) -> None:
    ours = read(demo_models / "motion-adapter" / "sd15", unet).unet.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def lacking(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "proj_out.bias" not in name}


def with_more(tensors: Tensors) -> Tensors:
    return {**tensors, "conv_in.weight": torch.zeros(4, 9, 3, 3)}


def misshapen(tensors: Tensors) -> Tensors:
    name = "up_blocks.0.motion_modules.0.proj_in.bias"
    return {**tensors, name: torch.zeros(7)}


def infinite(tensors: Tensors) -> Tensors:
    name = "up_blocks.0.motion_modules.0.proj_in.bias"
    return {**tensors, name: torch.full_like(tensors[name], torch.inf)}


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (lacking, r"it lacks 13 tensors \('mid_block.motion_modules.0.proj_out.bias' for one\)"),
        (with_more, r"1 of its tensors are no part of motion layers \('conv_in.weight' for one\)"),
        (misshapen, r"its 'up_blocks.0.motion_modules.0.proj_in.bias' is \(7,\); \(48,\) is need"),
        (infinite, "holds numbers that are not finite"),
    ],
)
def test_a_file_with_something_wrong(
    written: Callable[[Tensors], Tensors],
    says: str,
    unet: UNet2DConditionModel,
    adapter: MotionAdapter,
    tmp_path: Path,
) -> None:
    file = tmp_path / "motion.safetensors"
    save_file(written(adapter.state_dict()), file)
    with pytest.raises(ValueError, match=f"motion_adapter {file}: .*{says}"):
        read(file, unet)


def test_what_is_none(unet: UNet2DConditionModel, demo_models: Path, tmp_path: Path) -> None:
    (tmp_path / "motion.ckpt").write_bytes(b"a pickle")
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    for source, says in (
        (demo_models / "motion-loras" / "zoom-in.safetensors", "motion LoRAs go under motion_lor"),
        (demo_models / "sd15-community.safetensors", "it holds no motion layers, but 'cond_stage"),
        (demo_models / "sd15" / "unet", "it is a UNet2DConditionModel; a MotionAdapter is needed"),
        (tmp_path / "motion.ckpt", "is a pickle, which can run code when it is opened"),
        (tmp_path / "broken.safetensors", "[Hh]eader"),
        (demo_models / "sd15", "holds 0 safetensors files"),
    ):
        with pytest.raises(ValueError, match=f"motion_adapter .*{says}"):
            read(source, unet)


def test_one_for_another_unet(demo_models: Path, tmp_path: Path) -> None:
    source = demo_models / "motion-adapter" / "sd15"
    sdxl = UNet2DConditionModel.from_pretrained(demo_models / "sdxl" / "unet")
    with pytest.raises(ValueError, match=r"32, 32, 48, 48 channels, this .*: is it of another fam"):
        read(source, sdxl)
    hole = UNet2DConditionModel.from_pretrained(demo_models / "sd15-inpainting" / "unet")
    with pytest.raises(ValueError, match="the model only inpaints, and makes no videos"):
        read(source, hole)
    MotionAdapter((32, 32, 48, 48), 2, motion_norm_num_groups=8).save_pretrained(tmp_path)
    unet = UNet2DConditionModel.from_pretrained(demo_models / "sd15" / "unet")
    with pytest.raises(ValueError, match=r"2, 2, 2, 2 motion layers .* blocks have 1, 1, 1, 1 lay"):
        read(tmp_path, unet)
    config = json.loads((source / "config.json").read_text())
    MotionAdapter.from_config({**config, "conv_in_channels": 9}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"beside the latents \(PIA\)"):
        read(tmp_path, unet)


def test_the_original_names_are_those_that_diffusers_converts(adapter: MotionAdapter) -> None:
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers

    tensors = adapter.state_dict()
    converted = convert_animatediff_checkpoint_to_diffusers(animatediff_names(tensors))
    assert converted.keys() == {name for name in tensors if not name.endswith("pos_embed.pe")}
    assert all(torch.equal(converted[name], tensors[name]) for name in converted)
