"""The VAE: its latents' scale in both directions, and a precision that holds them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from configs.app import Dtype, ModelArgs, ModelUserConfig, VaeArgs
from deployments.contracts.jobs import FinishedImage, PartialImage
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from deployments.diffusion.engine.models.vae import Vae, overflows, read_vae, safe_dtype
from tests.conftest import model_args
from tests.deployments.diffusion.engine.harness import image_job
from tests.deployments.diffusion.engine.pixels.test_decoder import small_vae

CPU = torch.device("cpu")


def test_a_scale_factor_is_applied_both_ways() -> None:
    vae = Vae(small_vae(scaling_factor=0.5))
    latents = torch.randn(1, 4, 8, 8)
    assert torch.equal(vae.scaled(latents), latents * 0.5)
    expected = vae.model.decode(latents, return_dict=False)[0]
    assert torch.allclose(vae.decode(latents * 0.5), expected, atol=1e-6)


def test_a_mean_and_a_deviation_are_applied_both_ways() -> None:
    mean, std = [0.5, -1.0, 2.0, 0.0], [2.0, 0.5, 1.0, 4.0]
    vae = Vae(small_vae(scaling_factor=0.25, latents_mean=mean, latents_std=std))
    latents = torch.randn(2, 4, 8, 8)
    scaled = vae.scaled(latents)
    for channel in range(4):
        by_hand = (latents[:, channel] - mean[channel]) * 0.25 / std[channel]
        assert torch.allclose(scaled[:, channel], by_hand, atol=1e-6)
    expected = vae.model.decode(latents, return_dict=False)[0]
    assert torch.allclose(vae.decode(scaled), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "dtype", "half_overflows", "expected"),
    [
        (None, torch.float32, True, torch.float32),
        (None, torch.bfloat16, True, torch.bfloat16),
        (None, torch.float16, False, torch.float16),
        (None, torch.float16, True, torch.float32),
        ("bfloat16", torch.float16, True, torch.bfloat16),
        ("float32", torch.float16, False, torch.float32),
        ("float16", torch.float16, True, torch.float16),
    ],
)
def test_half_precision_only_where_it_is_safe(
    asked: Dtype | None, dtype: torch.dtype, half_overflows: bool, expected: torch.dtype
) -> None:
    assert safe_dtype(asked, dtype, CPU, half_overflows=half_overflows) is expected


def test_a_configuration_that_does_not_speak_of_upcasting_needs_none() -> None:
    assert not overflows({})
    assert not overflows({"force_upcast": False})
    assert overflows({"force_upcast": True})


def vae_folder(source: Path, target: Path, **config: object) -> Path:
    """A copy of a checkpoint's VAE whose configuration says what is given; `None` leaves out."""
    shutil.copytree(source / "vae", target)
    file = target / "config.json"
    said = json.loads(file.read_text()) | config
    file.write_text(json.dumps({name: value for name, value in said.items() if value is not None}))
    return target


def test_the_file_is_asked_and_not_the_librarys_default(demo_models: Path, tmp_path: Path) -> None:
    silent = vae_folder(demo_models / "sd15", tmp_path / "silent", force_upcast=None)
    loud = vae_folder(demo_models / "sd15", tmp_path / "loud", force_upcast=True)
    assert AutoencoderKL.from_pretrained(silent).config.force_upcast, "what diffusers makes of it"
    for folder, expected in {silent: torch.float16, loud: torch.float32}.items():
        args = VaeArgs(source=str(folder))
        vae = read_vae(args, demo_models / "sd15", None, torch.float16, CPU)
        assert vae.dtype is expected


def test_a_single_file_and_a_folder_hold_the_same_vae(demo_models: Path, tmp_path: Path) -> None:
    folder = demo_models / "sd15"
    file = tmp_path / "vae.safetensors"
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", file)
    expected = read_vae(VaeArgs(), folder, None, torch.float32, CPU).state_dict()
    for source in (file, folder, folder / "vae"):
        args = VaeArgs(source=str(source))
        made = read_vae(args, folder, None, torch.float32, CPU, configs=folder).state_dict()
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], expected[name]) for name in expected)


def test_another_vae_in_another_precision_draws(demo_models: Path, tmp_path: Path) -> None:
    other = vae_folder(demo_models / "sd15", tmp_path / "other", scaling_factor=0.3)
    plain = model_args(demo_models, "sd15")
    args = plain.model_copy(update={"vae": VaeArgs(source=str(other), dtype="bfloat16")})
    parts = load(args)
    assert parts.vae.dtype is torch.bfloat16
    assert parts.unet.dtype is torch.float32
    assert not torch.equal(drawn(args), drawn(plain))


def test_a_tiny_autoencoder_draws_the_previews_alone(demo_models: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8)
    ).save_pretrained(tmp_path / "tiny")
    plain = model_args(demo_models, "sd15")
    args = plain.model_copy(update={"preview_vae": str(tmp_path / "tiny")})
    parts = load(args)
    assert isinstance(parts.preview_vae.model, AutoencoderTiny)
    assert torch.equal(drawn(args), drawn(plain)), "final images are the VAE's"
    assert not torch.equal(drawn(args, preview=True), drawn(plain, preview=True))


def test_a_preview_vae_that_does_not_fit_is_refused_by_name(
    demo_models: Path, tmp_path: Path
) -> None:
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    AutoencoderTiny(**blocks, latent_channels=16).save_pretrained(tmp_path / "channels")
    AutoencoderTiny(
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=(1, 3, 3),
        num_decoder_blocks=(3, 3, 1),
        upsampling_scaling_factor=2,
    ).save_pretrained(tmp_path / "scale")
    AutoencoderTiny(**blocks).save_pretrained(tmp_path / "pickle", safe_serialization=False)
    plain = model_args(demo_models, "sd15")
    for name, says in {
        "channels": "preview_vae .*16 channels",
        "scale": "preview_vae .*1/4 of the side; the model's have 4 and 1/8",
        "pickle": "safetensors",
        str(demo_models / "sd15" / "vae"): "preview_vae .*it is a AutoencoderKL; AutoencoderTiny",
    }.items():
        with pytest.raises((ValueError, OSError), match=says):
            load(plain.model_copy(update={"preview_vae": str(tmp_path / name)}))
    with pytest.raises(ValueError, match=r"vae .*it is a AutoencoderTiny; AutoencoderKL"):
        load(plain.model_copy(update={"vae": VaeArgs(source=str(tmp_path / "channels"))}))


def drawn(args: ModelArgs, *, preview: bool = False) -> torch.Tensor:
    """What a model makes of the usual job, at the end or on the way."""
    engine = Engine(load(args), ModelUserConfig())
    try:
        events = list(engine.events(image_job("job", partial_images=1, num_inference_steps=2)))
    finally:
        engine.stop()
    kind = PartialImage if preview else FinishedImage
    (event,) = [e for e in events if isinstance(e, kind)]
    return torch.from_numpy(event.pixels.copy())
