"""Image embeddings, held to `encode_image` of diffusers' pipeline."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from preprocessors.image_encoder import Embedding, ImageEncoder
from preprocessors.image_file import MAX_ASPECT_RATIO
from preprocessors.pixels import Pixels
from tests.preprocessors.conftest import CLIP_SIDE

TOKENS = (CLIP_SIDE // 8) ** 2 + 1


def diffusers_encode(
    folder: Path, image: Pixels, hidden: bool, dtype: torch.dtype = torch.float32
) -> tuple[Embedding, Embedding]:
    """(embedding, unconditional embedding) of one image."""
    model = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=dtype).eval()
    side = model.config.image_size
    pipeline = SimpleNamespace(  # as `load_ip_adapter` sets it up
        image_encoder=model, feature_extractor=CLIPImageProcessorPil(size=side, crop_size=side)
    )
    with torch.no_grad():
        embeds, negative = StableDiffusionPipeline.encode_image(
            pipeline, Image.fromarray(image), "cpu", 1, hidden
        )
    return embeds[0].float().numpy(), negative[0].float().numpy()


@pytest.fixture(scope="module")
def encoder(clip_folder: Path) -> ImageEncoder:
    return ImageEncoder(clip_folder, "cpu", "float32")


@pytest.mark.parametrize(("hidden", "shape"), [(False, (24,)), (True, (TOKENS, 32))])
def test_embeddings_are_diffusers(
    encoder: ImageEncoder,
    clip_folder: Path,
    pictures: list[Pixels],
    hidden: bool,
    shape: tuple[int, ...],
) -> None:
    batch = encoder.encode(pictures, hidden=hidden)
    for picture, embedding in zip(pictures, batch, strict=True):
        expected, negative = diffusers_encode(clip_folder, picture, hidden)
        (alone,) = encoder.encode([picture], hidden=hidden)
        assert embedding.shape == shape
        assert embedding.dtype == np.float32
        np.testing.assert_array_equal(alone, expected)
        np.testing.assert_allclose(embedding, expected, atol=2e-6)
        unconditional = encoder.unconditional(hidden=hidden)
        assert unconditional.dtype == np.float32
        np.testing.assert_allclose(unconditional, negative, atol=2e-6)
    assert np.abs(batch[0] - batch[1]).max() > 0.01


def test_half_precision_is_diffusers(clip_folder: Path, pictures: list[Pixels]) -> None:
    encoder = ImageEncoder(clip_folder, "cpu", "bfloat16")
    for hidden in (False, True):
        (embedding,) = encoder.encode(pictures[:1], hidden=hidden)
        expected, negative = diffusers_encode(clip_folder, pictures[0], hidden, torch.bfloat16)
        np.testing.assert_array_equal(embedding, expected)
        np.testing.assert_array_equal(encoder.unconditional(hidden=hidden), negative)


def test_the_unconditional_embeddings(encoder: ImageEncoder) -> None:
    assert not encoder.unconditional(hidden=False).any()
    assert encoder.unconditional(hidden=True).any()
    assert encoder.unconditional(hidden=True) is encoder.unconditional(hidden=True)
    assert not encoder.unconditional(hidden=True).flags.writeable


def test_the_folders_own_processor_is_used(
    clip_folder: Path, pictures: list[Pixels], tmp_path: Path
) -> None:
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    CLIPImageProcessorPil(
        size=CLIP_SIDE, crop_size=CLIP_SIDE, image_mean=[0.1, 0.2, 0.3]
    ).save_pretrained(tmp_path)
    (embedding,) = ImageEncoder(tmp_path, "cpu", "float32").encode(pictures[:1], hidden=False)
    expected, _ = diffusers_encode(clip_folder, pictures[0], hidden=False)
    assert np.abs(embedding - expected).max() > 1e-3


def test_no_images_give_no_embeddings(encoder: ImageEncoder) -> None:
    assert encoder.encode([], hidden=False) == []


@pytest.mark.parametrize("shape", [(3, 40, 3), (4, 4, 3), (1, 1, 3)])
def test_channels_come_last_even_in_tiny_images(
    encoder: ImageEncoder, clip_folder: Path, shape: tuple[int, ...]
) -> None:
    # A processor that guesses would take the first of these for channels-first.
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    expected, _ = diffusers_encode(clip_folder, image, hidden=False)
    np.testing.assert_allclose(encoder.encode([image], hidden=False)[0], expected, atol=2e-6)


def test_a_thread_of_an_image_is_refused(encoder: ImageEncoder) -> None:
    image = np.zeros((MAX_ASPECT_RATIO + 1, 1, 3), np.uint8)
    with pytest.raises(ValueError, match="1 x 101 pixels cannot be encoded"):
        encoder.encode([image], hidden=False)
    encoder.encode([image[1:]], hidden=False)


def test_missing_weights_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    tensors = load_file(clip_folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights visual_projection.weight$"):
        ImageEncoder(tmp_path, "cpu", "float32")
