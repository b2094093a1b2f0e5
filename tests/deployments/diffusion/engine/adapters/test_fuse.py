"""W + alpha / rank x up @ down, computed here from the file's tensors."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from configs.families import FamilyName
from demo.sgm import sgm_layer
from deployments.diffusion.engine.adapters.files import LoraError
from deployments.diffusion.engine.adapters.fuse import fuse
from deployments.diffusion.engine.adapters.names import adaptable

LAYER = "mid_block.attentions.0.proj_in"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def unet_of(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    unet: nn.Module = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
    return unet


def weights_of(unet: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


def assert_fused(
    unet: nn.Module, before: Mapping[str, Tensor], changes: Mapping[str, Tensor]
) -> None:
    """The layers have their changes, rounded once, and nothing else is touched."""
    for name, tensor in unet.state_dict().items():
        layer = name.removesuffix(".weight")
        expected = before[name]
        assert tensor.dtype == expected.dtype
        if layer == name or layer not in changes:
            assert torch.equal(tensor, expected), name
            continue
        exact = expected.double() + changes[layer].double().view(expected.shape)
        # Half a unit in the last place, and what float32 is off before.
        bound = torch.finfo(tensor.dtype).eps / 2 * exact.abs() + 1e-6
        assert ((tensor.double() - exact).abs() <= bound).all(), name
        assert not torch.equal(tensor, expected), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_layer_by_its_own_alpha_and_rank(
    dtype: torch.dtype, demo_models: Path, tmp_path: Path
) -> None:
    unet = unet_of(demo_models / "sd15", dtype)
    tensors: dict[str, Tensor] = {}
    changes: dict[str, Tensor] = {}
    for index, (name, layer) in enumerate(adaptable(unet)):
        width, *fan_in = layer.weight.shape
        rank = 1 + index % 5
        down = torch.randn(rank, *fan_in).half()
        up = 0.1 * torch.randn(width, rank, *(1 for _ in fan_in[1:])).half()
        key = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        alpha = rank  # where the file says nothing
        if index % 2:
            alpha = 1 + index % 3
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
        changes[name] = alpha / rank * up.flatten(1).float() @ down.flatten(1).float()
    save_file(tensors, tmp_path / "tcd.safetensors")
    before = weights_of(unet)
    fuse(unet, tmp_path)
    assert_fused(unet, before, changes)


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_the_demos_tcd_loras(family: FamilyName, demo_models: Path) -> None:
    source = demo_models / "tcd-lora" / family
    tensors = load_file(source / "pytorch_lora_weights.safetensors")
    unet = unet_of(demo_models / family)
    changes = {}
    for name, _ in adaptable(unet):
        key = f"unet.{name}" if family != "sd15" else "lora_unet_" + name.replace(".", "_")
        marks = ("lora_A", "lora_B") if family != "sd15" else ("lora_down", "lora_up")
        if f"{key}.{marks[0]}.weight" in tensors:
            down, up = (tensors[f"{key}.{mark}.weight"].flatten(1) for mark in marks)
            alpha = tensors.get(f"{key}.alpha", torch.tensor(float(len(down))))
            changes[name] = alpha / len(down) * up @ down
    assert len(changes) > 100
    before = weights_of(unet)
    fuse(unet, source)
    assert_fused(unet, before, changes)


def test_the_original_unets_names(demo_models: Path, tmp_path: Path) -> None:
    unet = unet_of(demo_models / "sdxl")
    key = "lora_unet_" + sgm_layer(LAYER, 1, (2,)).replace(".", "_")
    width = len(unet.get_parameter(f"{LAYER}.weight"))
    down, up = torch.randn(2, width), torch.randn(width, 2)
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    save_file(tensors | {f"{key}.alpha": torch.tensor(8.0)}, tmp_path / "tcd.safetensors")
    before = weights_of(unet)
    fuse(unet, tmp_path / "tcd.safetensors")
    assert_fused(unet, before, {LAYER: 4 * up @ down})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whatever_order_the_weights_lie_in(
    dtype: torch.dtype, demo_models: Path, tmp_path: Path
) -> None:
    conv = "down_blocks.0.resnets.0.conv1"
    unet = unet_of(demo_models / "sd15", dtype)
    for weight in unet.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    width, *fan_in = unet.get_parameter(f"{conv}.weight").shape
    down, up = torch.randn(2, *fan_in), torch.randn(width, 2, 1, 1)
    tensors = {f"unet.{conv}.lora_A.weight": down, f"unet.{conv}.lora_B.weight": up}
    save_file(tensors, tmp_path / "tcd.safetensors")
    before = weights_of(unet)
    fuse(unet, tmp_path)
    assert_fused(unet, before, {conv: up.flatten(1) @ down.flatten(1)})


def one_layer(width: int = 48, **extra: Tensor) -> dict[str, Tensor]:
    name = f"unet.{LAYER}"
    tensors = {"lora_A": torch.randn(4, width, 1, 1), "lora_B": torch.randn(48, 4, 1, 1)}
    return {f"{name}.{mark}.weight": tensor for mark, tensor in (tensors | extra).items()}


TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
REFUSED = {
    "a text encoder": (
        one_layer()
        | {f"{TEXT}.lora_A.weight": torch.ones(1, 32), f"{TEXT}.lora_B.weight": torch.ones(64, 1)},
        r"text_encoder.*another family",
    ),
    "another shape": (one_layer(width=47), "another family"),
    "another kind": (
        one_layer() | {"lora_unet_conv_in.diff": torch.ones(32, 4, 3, 3)},
        "is no plain LoRA",
    ),
    "no number": (one_layer(lora_B=torch.full((48, 4, 1, 1), torch.nan)), "not finite"),
    "a number too large": (one_layer(lora_B=torch.full((48, 4, 1, 1), 1e6)), "not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, demo_models: Path, tmp_path: Path) -> None:
    tensors, reason = REFUSED[case]
    save_file(tensors, tmp_path / "tcd.safetensors")
    with pytest.raises(LoraError, match=rf"tcd\.safetensors .*{reason}"):
        fuse(unet_of(demo_models / "sd15", torch.float16), tmp_path)


def test_on_the_meta_device_shapes_are_checked(demo_models: Path, tmp_path: Path) -> None:
    unet = unet_of(demo_models / "sd15").to("meta")
    fuse(unet, demo_models / "tcd-lora" / "sd15")
    assert all(tensor.is_meta for tensor in unet.state_dict().values())
    save_file(one_layer(width=47), tmp_path / "tcd.safetensors")
    with pytest.raises(LoraError, match="another family"):
        fuse(unet, tmp_path)
