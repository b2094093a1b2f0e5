"""The published geometries, and models and adapters written of them."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.device.calls import unet_flops
from benchmarks.full_size import adapter_layers, write_adapter, write_full_size
from configs.app import ModelArgs, ModelUserConfig
from configs.families import FamilyName
from configs.published import geometry
from deployments.contracts.jobs import ImageJob, LoraWeight
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from deployments.diffusion.engine.models.skeletons import on_meta

FAMILIES: tuple[FamilyName, ...] = ("sdxl", "sd15")
# Of the checkpoints on the hub.
PARAMETERS: dict[FamilyName, tuple[int, int, list[int]]] = {
    "sdxl": (2_567_463_684, 83_653_863, [123_060_480, 694_659_840]),
    "sd15": (859_520_964, 83_653_863, [123_060_480]),
}


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_published_models_have_as_many_parameters(family: FamilyName) -> None:
    shapes = geometry(family)
    with torch.device("meta"):
        encoders = [
            kind(CLIPTextConfig(**config))
            for kind, config in zip(
                (CLIPTextModel, CLIPTextModelWithProjection), shapes.text_encoders, strict=False
            )
        ]
    assert (
        size(on_meta(UNet2DConditionModel, shapes.unet)),
        size(on_meta(AutoencoderKL, shapes.vae)),
        [size(encoder) for encoder in encoders],
    ) == PARAMETERS[family]


def test_a_row_of_sdxl_takes_6_8_teraflop() -> None:
    assert unet_flops("sdxl") == pytest.approx(6.76e12, rel=0.01)


@pytest.mark.parametrize(("family", "layers"), [("sdxl", 986), ("sd15", 264)])
def test_a_full_adapter_changes_as_many_layers_as_kohyas(family: FamilyName, layers: int) -> None:
    assert len(adapter_layers(family)) == layers


def test_published_configurations_say_no_more_than_they_do() -> None:
    assert "force_upcast" not in geometry("sd15").vae
    assert geometry("sdxl").vae["force_upcast"] is True


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_loads_and_draws(family: FamilyName, tmp_path: Path) -> None:
    base, adapter = tmp_path / family, tmp_path / "style.safetensors"
    write_full_size(base, family, torch.float32, tiny=True)
    write_adapter(adapter, family, 4, 1, dtype=torch.float32, tiny=True)
    args = ModelArgs(
        name=family,
        family=family,
        checkpoint=str(base),
        tcd_lora=None,
        dtype="float32",
        device="cpu",
    )
    engine = Engine(load(args), ModelUserConfig(loras={"style": str(adapter)}))
    try:
        plain = engine.generate(ImageJob("1", "a red fox", (1,), 64, 64))[0]
        style = (LoraWeight("style"),)
        styled = engine.generate(ImageJob("2", "a red fox", (1,), 64, 64, loras=style))[0]
    finally:
        engine.stop()
    assert plain.pixels.std() > 10
    assert abs(plain.latents - styled.latents).max() > 0.01


def test_no_weight_is_zero_and_seeds_differ(tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, file in enumerate(files):
        write_adapter(file, "sdxl", 4, seed, text=False, tiny=True)
    with safe_open(files[0], "pt") as one, safe_open(files[1], "pt") as other:
        for name in one.keys():  # noqa: SIM118
            assert name.startswith("lora_unet_")
            first, second = one.get_tensor(name), other.get_tensor(name)
            assert first.dtype == torch.float16
            assert first.count_nonzero() > 0.99 * first.numel()
            assert name.endswith(".alpha") or not torch.equal(first, second)
