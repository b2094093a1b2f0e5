"""`make check-config` finds files of another family, which the start of a model would refuse."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import MotionAdapter
from safetensors.torch import save_file

from graphs.check.config import problems, problems_of

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "serve_config.yaml"
WEIGHTS = "demo/weights"


@pytest.fixture
def sdxl(demo_models: Path) -> dict[str, Any]:
    """The demo's model of sdxl, alone."""
    config: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    found = [each for each in config["applications"] if each["name"] == "model-sdxl"]
    return config | {"applications": found}


def found(config: dict[str, Any], folder: Path) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert list(problems(config)) == []  # headers tell nothing
    return list(problems_of(path))


@pytest.mark.parametrize(
    ("args", "user_config", "says"),
    [
        (
            {"tcd_lora": f"{WEIGHTS}/tcd-lora/sd15"},
            {},
            "args.tcd_lora: pytorch_lora_weights.safetensors adapts",
        ),
        (
            {},
            {"loras": {"ink": f"{WEIGHTS}/loras/sd15/ink.safetensors"}},
            "Diffusion.user_config.loras.ink: ink.safetensors adapts",
        ),
        (
            {"controls": {"depth": f"{WEIGHTS}/controlnet/sd15/depth"}},
            {},
            "args.controls.depth: ",
        ),
        (
            {"motion_adapter": f"{WEIGHTS}/motion-adapter/sd15"},
            {},
            "args.motion_adapter: ",
        ),
        (
            {
                "ip_adapter": {
                    "adapter": f"{WEIGHTS}/ip-adapter/models/ip-adapter_sd15.safetensors",
                    "image_encoder": "sd15",
                }
            },
            {},
            "args.ip_adapter.adapter: ",
        ),
        (
            {"embeddings": {"cat": "CAT"}},
            {},
            "args.embeddings.cat: cat.safetensors holds emb_params; clip_l and clip_g is needed",
        ),
    ],
    ids=["tcd_lora", "lora", "control", "motion", "picture", "word"],
)
def test_files_of_another_family(
    args: dict[str, Any],
    user_config: dict[str, Any],
    says: str,
    sdxl: dict[str, Any],
    tmp_path: Path,
) -> None:
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "cat.safetensors")
    if "embeddings" in args:
        args = {"embeddings": {"cat": str(tmp_path / "cat.safetensors")}}
    (model,) = sdxl["applications"]
    model["args"] |= args
    model["deployments"][0]["user_config"] |= user_config
    (said,) = found(sdxl, tmp_path)
    assert said.startswith(f"model-sdxl.{says}")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("checkpoint", "known"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", True),
        ("owner/name/model.safetensors", True),
        ("s3://bucket/pruned", False),  # it may have a geometry of its own
    ],
)
def test_a_style_for_a_checkpoint_that_is_elsewhere(
    checkpoint: str, known: bool, sdxl: dict[str, Any], tmp_path: Path
) -> None:
    """It is judged by the published base of the family, where the checkpoint has its shapes."""
    (model,) = sdxl["applications"]
    model["args"] |= {"checkpoint": checkpoint, "tcd_lora": "a/b", "controls": {}}
    del model["args"]["ip_adapter"]
    whole, foreign = tmp_path / "whole.safetensors", tmp_path / "foreign.safetensors"
    for file, width in ((whole, 2048), (foreign, 768)):
        name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
        up, down = torch.zeros(640, 4), torch.zeros(4, width)
        save_file({f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}, file)
    model["deployments"][0]["user_config"]["loras"] = {"w": str(whole), "f": str(foreign)}
    said = found(sdxl, tmp_path)
    at = "model-sdxl.Diffusion.user_config.loras.f"
    assert [line.partition(": ")[0] for line in said] == [at] * known


@pytest.mark.parametrize("content", ["[]", "null", '{"hidden_size": "x"}', None])
def test_a_folder_that_describes_no_model(
    content: str | None, sdxl: dict[str, Any], tmp_path: Path
) -> None:
    """It is said once, of the checkpoint."""
    (model,) = sdxl["applications"]
    folder = tmp_path / "odd"
    shutil.copytree(ROOT / model["args"]["checkpoint"], folder)
    config = folder / "text_encoder" / "config.json"
    config.unlink()
    if content is not None:
        config.write_text(content)
    model["args"]["checkpoint"] = str(folder)
    (said,) = found(sdxl, tmp_path)
    assert said.startswith("model-sdxl.args.checkpoint: its configurations describe no model: ")


@pytest.mark.parametrize(
    "content", ["[]", '{"_class_name": "ControlNetModel", "block_out_channels": 5}']
)
def test_a_control_that_describes_no_model(
    content: str, sdxl: dict[str, Any], tmp_path: Path
) -> None:
    (model,) = sdxl["applications"]
    folder = tmp_path / "odd"
    shutil.copytree(ROOT / "demo/weights/controlnet/sd15/depth", folder)
    (folder / "config.json").write_text(content)
    model["args"]["controls"] = {"depth": str(folder)}
    (said,) = found(sdxl, tmp_path)
    assert said.startswith("model-sdxl.args.controls.depth: ")


def test_adapters_of_motion_layers(demo_models: Path, tmp_path: Path) -> None:
    """They are judged by the motion adapter; where that does not fit itself, it alone is named."""
    config: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    config["applications"] = [c for c in config["applications"] if c["name"] == "model-sd15"]
    (model,) = config["applications"]
    foreign = f"{WEIGHTS}/loras/sdxl/ink.safetensors"
    model["deployments"][0]["user_config"]["motion_loras"]["foreign"] = foreign
    (said,) = found(config, tmp_path)
    assert said.startswith("model-sd15.Diffusion.user_config.motion_loras.foreign: ink.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    torch.manual_seed(0)
    MotionAdapter(block_out_channels=(32, 64), motion_norm_num_groups=32).save_pretrained(other)
    model["args"]["motion_adapter"] = str(other)
    (said,) = found(config, tmp_path)
    assert said.startswith("model-sd15.args.motion_adapter: ")
