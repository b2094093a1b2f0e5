"""The IP-Adapters load as from h94/IP-Adapter, and the picture changes the result."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, TCDScheduler
from safetensors import safe_open
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from demo.image_encoder import write_image_encoder
from demo.ip_adapter import ADAPTERS, PLUS_TOKENS, write_ip_adapter
from tests.demo.sampling import PROMPT, Pipeline, change, picture, sample, seeded

ENCODER_FOLDERS = {"vit-h": "models/image_encoder", "vit-bigg": "image_encoder"}


@pytest.fixture(scope="module", params=ADAPTERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain_latents(pipe: Pipeline) -> torch.Tensor:
    """Of the same base without the adapter: scale 0."""
    return guided(pipe, 0, scale=0.0)


@pytest.fixture(scope="module")
def pipe(models: Path, name: str) -> Iterator[Pipeline]:
    """The adapter's base with the adapter on it."""
    adapter = ADAPTERS[name]
    pipeline_class = (
        StableDiffusionXLPipeline if adapter.family == "sdxl" else StableDiffusionPipeline
    )
    pipe = pipeline_class.from_pretrained(models / adapter.family, local_files_only=True)
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    before = sample(pipe)
    pipe.load_ip_adapter(
        models / "ip-adapter",
        subfolder="sdxl_models" if adapter.family == "sdxl" else "models",
        weight_name=f"{name}.safetensors",
        image_encoder_folder=ENCODER_FOLDERS[adapter.encoder],
        local_files_only=True,
    )
    yield pipe
    pipe.unload_ip_adapter()
    assert torch.equal(sample(pipe), before)


def guided(pipe: Pipeline, number: int, *, scale: float, steps: int = 4) -> torch.Tensor:
    """Final latents with `picture(number)` as the image prompt."""
    pipe.set_ip_adapter_scale(scale)
    latents = pipe(
        PROMPT,
        ip_adapter_image=picture(number),
        num_inference_steps=steps,
        eta=0.3,
        guidance_scale=0,
        generator=seeded(),
        output_type="latent",
    ).images
    assert isinstance(latents, torch.Tensor)
    return latents


def test_picture_decides(pipe: Pipeline, plain_latents: torch.Tensor) -> None:
    first, second = (guided(pipe, number, scale=0.5) for number in (0, 1))
    assert 0.15 < change(first, plain_latents) < 0.75
    assert 0.15 < change(second, plain_latents) < 0.75
    assert change(second, first) > 0.2
    assert change(guided(pipe, 0, scale=1.0), plain_latents) > change(first, plain_latents)
    assert guided(pipe, 0, scale=1.0, steps=30).abs().max() < 40


def test_layout_is_the_hubs(models: Path, name: str) -> None:
    adapter = ADAPTERS[name]
    folder = "sdxl_models" if adapter.family == "sdxl" else "models"
    with safe_open(models / "ip-adapter" / folder / f"{name}.safetensors", "pt") as tensors:
        keys = set(tensors.keys())
        if adapter.plus:
            assert tensors.get_slice("image_proj.latents").get_shape()[1] == PLUS_TOKENS
            assert "image_proj.layers.3.0.to_kv.weight" in keys
        else:
            assert {key for key in keys if key.startswith("image_proj.")} == {
                f"image_proj.{layer}.{kind}"
                for layer in ("proj", "norm")
                for kind in ("weight", "bias")
            }
    numbers = sorted({int(key.split(".")[1]) for key in keys if key.startswith("ip_adapter.")})
    assert numbers == list(range(1, 2 * len(numbers), 2))
    assert {f"ip_adapter.{n}.to_{kv}_ip.weight" for n in numbers for kv in "kv"} <= keys


@pytest.mark.parametrize("folder", ["models", "sdxl_models"])
def test_image_encoders_tell_pictures_apart(models: Path, folder: str) -> None:
    place = models / "ip-adapter" / folder / "image_encoder"
    encoder = CLIPVisionModelWithProjection.from_pretrained(place, local_files_only=True)
    processor = CLIPImageProcessorPil.from_pretrained(place, local_files_only=True)
    pixels = processor([picture(number) for number in range(3)], return_tensors="pt").pixel_values
    assert pixels.shape == (3, 3, 224, 224)
    with torch.no_grad():
        output = encoder(pixels, output_hidden_states=True)
    for states in (output.image_embeds, output.hidden_states[-2].flatten(1)):
        likeness = torch.corrcoef(states)
        assert likeness.fill_diagonal_(0).max() < 0.8


def test_unknown_names_are_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vit-h, vit-bigg"):
        write_image_encoder("vit-l", tmp_path)
    with pytest.raises(ValueError, match="ip-adapter_sd15"):
        write_ip_adapter("ip-adapter_sd3", models / "sd15", tmp_path / "a.safetensors")
