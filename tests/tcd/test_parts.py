"""`tcd check` of files beside a checkpoint, as large as those that people have, full of zeros."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, MotionAdapter, UNet2DConditionModel
from torch import nn

from configs.families import FAMILIES, FamilyName
from configs.published import geometry
from deployments.diffusion.engine.models.checkpoints.header import Shape
from deployments.diffusion.engine.models.ip_adapter import cross_attentions
from deployments.diffusion.engine.models.skeletons import on_meta
from tests.tcd.test_check import run

Shapes = dict[str, Shape]


def write_zeros(file: Path, shapes: Shapes) -> None:
    """A safetensors file in half precision, that takes no room on a disk."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + end)


def unet_of(family: FamilyName) -> UNet2DConditionModel:
    return on_meta(UNet2DConditionModel, geometry(family).unet)


def shapes_of(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def controlnet(family: FamilyName) -> Shapes:
    with torch.device("meta"):
        return shapes_of(ControlNetModel.from_unet(unet_of(family), load_weights_from_unet=False))


def motion_adapter(family: FamilyName) -> Shapes:
    channels = tuple(unet_of(family).config.block_out_channels)
    with torch.device("meta"):
        return shapes_of(MotionAdapter(block_out_channels=channels, use_motion_mid_block=False))


def motion_lora(family: FamilyName) -> Shapes:
    """As guoyww's, of the first layer of each block."""
    shapes: Shapes = {}
    for block, width in enumerate(unet_of(family).config.block_out_channels):
        layer = f"down_blocks.{block}.motion_modules.0.transformer_blocks.0.attn1.processor"
        shapes[f"unet.{layer}.to_q_lora.down.weight"] = (4, width)
        shapes[f"unet.{layer}.to_q_lora.up.weight"] = (width, 4)
    return shapes


def ip_adapter(family: FamilyName) -> Shapes:
    unet = unet_of(family)
    width = int(unet.config.cross_attention_dim)
    shapes: Shapes = {
        "image_proj.proj.weight": (4 * width, 1024),
        "image_proj.proj.bias": (4 * width,),
        "image_proj.norm.weight": (width,),
        "image_proj.norm.bias": (width,),
    }
    for number, layer in enumerate(cross_attentions(unet)):
        for what in "kv":
            shapes[f"ip_adapter.{1 + 2 * number}.to_{what}_ip.weight"] = (layer.width, width)
    return shapes


@pytest.mark.parametrize(
    ("shapes", "family", "fits", "says", "otherwise"),
    [
        (controlnet, "sd15", ["sd15"], "a ControlNet; it stands in `controls`; ", "like one for"),
        (
            motion_adapter,
            "sd15",
            ["sd15", "sd21"],
            "in `motion_adapter`; ",
            "is it of another family?",
        ),
        (motion_lora, "sdxl", ["sd15", "sd21", "sdxl"], "in `motion_loras`", ""),
        (motion_lora, "sd15", ["sd15", "sd21"], "in `motion_loras`", "of which this model lacks"),
        (ip_adapter, "sd15", ["sd15"], "an IP-Adapter; it stands in `ip_adapter`; ", "family?"),
    ],
)
def test_a_part_is_told_with_its_place(
    shapes: Callable[[FamilyName], Shapes],
    family: FamilyName,
    fits: list[str],
    says: str,
    otherwise: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_zeros(tmp_path / "part.safetensors", shapes(family))
    code, out = run(capsys, tmp_path / "part.safetensors")
    first, *verdicts = out.splitlines()
    assert code == 0, out
    assert says in first
    told = dict(line.strip().split(": ", 1) for line in verdicts)
    assert [name for name in FAMILIES if told[name] == "loads"] == fits, out
    assert all(otherwise in told[name] for name in FAMILIES if name not in fits), out


def test_an_adapter_that_reads_faces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """InstantID's, in the layout of plus: no image encoder makes what it reads."""
    shapes: Shapes = {
        "image_proj.latents": (1, 16, 1280),
        "image_proj.proj_in.weight": (1280, 512),
        "ip_adapter.1.to_k_ip.weight": (8, 8),
    }
    write_zeros(tmp_path / "face.safetensors", shapes)
    code, out = run(capsys, "--family", "sdxl", tmp_path / "face.safetensors")
    assert code == 1
    assert "it is a FaceID adapter or InstantID's: it reads embeddings of faces" in out


def test_the_folder_of_a_part_is_told_as_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for says, shapes in (("a motion adapter", motion_adapter), ("a ControlNet", controlnet)):
        folder = tmp_path / says
        folder.mkdir()
        write_zeros(folder / "diffusion_pytorch_model.safetensors", shapes("sd15"))
        code, out = run(capsys, "--family", "sd15", "--json", folder)
        told = json.loads(out)
        assert (told["kind"], told["families"], code) == (says, {"sd15": "loads"}, 0)


def test_a_cut_part_and_one_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = motion_adapter("sd15")
    del shapes["down_blocks.1.motion_modules.1.norm.weight"]
    write_zeros(tmp_path / "cut.safetensors", shapes)
    code, out = run(capsys, "--json", "--family", "sd15", tmp_path / "cut.safetensors")
    told = json.loads(out)
    assert (code, told["kind"]) == (1, "a motion adapter")
    assert "layers" in told["families"]["sd15"]


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"emb_params": (4, 768)}, "loads"),
        (
            {"clip_l": (4, 768), "clip_g": (4, 1280)},
            "one tensor is needed: is it of another family",
        ),
        ({"lllite_unet_input_blocks_4.down.0.weight": (32, 640)}, "is a ControlNet-LLLite, no"),
        ({"lora_controlnet": (1,), "input_hint_block.0.weight": (16, 3, 3, 3)}, "a Control-LoRA"),
        (
            {"image_proj.norm.weight": (768,), "ip_adapter.0.to_q_lora.down.weight": (128, 320)},
            "it is a FaceID adapter",
        ),
        (
            {"vision_model.embeddings.class_embedding": (1280,)},
            "is an image encoder, no checkpoint",
        ),
        ({"768.0.linear.0.weight": (1536, 768)}, "is a hypernetwork, no checkpoint"),
        ({"decoder.layers.1.weight": (64, 4, 3, 3)}, "it stands in `preview_vae`"),
        ({"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)}, "diffusers' names, part of"),
        ({"x": (1,)}, "holds no adapter's weights"),
    ],
)
def test_files_of_other_kinds(
    shapes: Shapes, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_zeros(tmp_path / "odd.safetensors", shapes)
    code, out = run(capsys, "--family", "sd15", tmp_path / "odd.safetensors")
    verdict = out.splitlines()[1]
    assert says in verdict, out
    assert code == (says != "loads")
