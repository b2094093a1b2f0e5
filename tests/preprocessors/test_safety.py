"""The safety checker beside diffusers' own forward pass."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from deployments.contracts.verdict import ADJUSTMENT, Verdict
from preprocessors.image_file import MAX_ASPECT_RATIO
from preprocessors.pixels import Pixels
from preprocessors.safety import SafetyChecker
from tests.safety_models import (
    BLUE_PICTURE,
    CONCEPT,
    GREEN_PICTURE,
    RED_PICTURE,
    plain,
    write_safety_checker,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safety_checker(tmp_path_factory.mktemp("safety"))


@pytest.fixture(scope="module")
def checker(folder: Path) -> SafetyChecker:
    return SafetyChecker(folder, "cpu", "float32")


def verdict_of(checker: SafetyChecker, picture: Pixels) -> Verdict:
    (seen,) = checker.margins([picture])
    return Verdict(tuple(map(float, seen.concepts)), tuple(map(float, seen.special)))


@cache
def of_diffusers(folder: Path) -> tuple[StableDiffusionSafetyChecker, CLIPImageProcessorPil]:
    return (
        StableDiffusionSafetyChecker.from_pretrained(folder, local_files_only=True),
        CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True),
    )


def by_diffusers(folder: Path, picture: Pixels) -> bool:
    """Whether diffusers' own forward pass flags a picture."""
    model, processor = of_diffusers(folder)
    pixels = processor([Image.fromarray(picture)], return_tensors="pt").pixel_values
    _, flagged = model(clip_input=pixels, images=[picture.astype(np.float32)])
    return bool(flagged[0])


def cosine(picture: Pixels, color: tuple[float, float, float]) -> float:
    """Of a picture's mean color, from -1 to 1, and a color."""
    mean = picture.reshape(-1, 3).mean(0) / 127.5 - 1
    return float(mean @ color / np.linalg.norm(mean) / np.linalg.norm(color))


def test_it_finds_what_its_weights_say(checker: SafetyChecker) -> None:
    red, blue, green = checker.margins([RED_PICTURE, BLUE_PICTURE, GREEN_PICTURE])
    assert red.concepts.shape == (17,)
    assert red.special.shape == (3,)
    assert red.concepts.dtype == np.float32
    assert [index for index, margin in enumerate(red.concepts) if margin > 0] == [CONCEPT]
    assert red.concepts[CONCEPT] == pytest.approx(cosine(RED_PICTURE, (1, -1, -1)) - 0.5, abs=0.02)
    assert blue.special[1] == pytest.approx(cosine(BLUE_PICTURE, (-1, -1, 1)) - 0.5, abs=0.02)
    assert (green.concepts < 0).all()
    assert (green.special < 0).all()


def test_a_verdict_is_that_of_diffusers(
    checker: SafetyChecker, folder: Path, pictures: list[Pixels]
) -> None:
    generator = np.random.default_rng(3)
    colors = [plain(*map(int, color)) for color in generator.integers(0, 256, (40, 3))]
    seen = [*pictures, RED_PICTURE, BLUE_PICTURE, GREEN_PICTURE, *colors]
    flagged = [by_diffusers(folder, picture) for picture in seen]
    assert [bool(verdict_of(checker, picture).found("auto")) for picture in seen] == flagged
    assert {True, False} <= set(flagged)


@pytest.mark.parametrize("nearness", [-0.03, -0.012, -0.005, 0.005, 0.012, 0.03])
@pytest.mark.parametrize("special", [False, True])
def test_low_is_less_strict(nearness: float, special: bool, tmp_path: Path) -> None:
    """A picture that is so much beyond the threshold, as diffusers' arithmetic has it."""
    purple = plain(200, 20, 190)
    first = SafetyChecker(write_safety_checker(tmp_path / "one"), "cpu", "float32")
    (at,) = first.margins([purple])
    blue = 0.5 + float(at.special[1]) + (-0.1 if special else 0.1)
    red = 0.5 + float(at.concepts[CONCEPT]) - nearness
    folder = write_safety_checker(tmp_path / "other", red=red, blue=blue)
    verdict = verdict_of(SafetyChecker(folder, "cpu", "float32"), purple)
    care = 0.01 if special else 0.0
    assert bool(verdict.found("auto")) == (nearness + care > 0) == by_diffusers(folder, purple)
    assert bool(verdict.found("low")) == (nearness + care - 0.02 > 0)


def test_whatever_low_blocks_auto_blocks() -> None:
    generator = np.random.default_rng(0)
    for _ in range(2000):
        margins = generator.normal(-0.01, 0.02, 20)
        verdict = Verdict(tuple(margins[:17]), tuple(margins[17:]))
        assert set(verdict.found("low")) <= set(verdict.found("auto"))
    assert ADJUSTMENT["auto"] == 0


def test_one_of_many_is_as_one_alone(checker: SafetyChecker, pictures: list[Pixels]) -> None:
    seen = [*pictures, RED_PICTURE]
    together = checker.margins(seen)
    for picture, margins in zip(seen, together, strict=True):
        (alone,) = checker.margins([picture])
        np.testing.assert_allclose(margins.concepts, alone.concepts, atol=1e-5)
    assert checker.margins([]) == []


def test_a_checkpoint_with_the_published_names(folder: Path, tmp_path: Path) -> None:
    """As `CompVis/stable-diffusion-safety-checker` has them, and without a processor's file."""
    tensors = {
        name.replace("vision_model.", "vision_model.vision_model.", 1): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    places = torch.arange(17)[None]
    tensors["vision_model.vision_model.embeddings.position_ids"] = places
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    old = SafetyChecker(tmp_path, "cpu", "float32")
    assert verdict_of(old, RED_PICTURE).found("auto") == (CONCEPT,)
    assert verdict_of(old, GREEN_PICTURE).found("auto") == ()


@pytest.mark.parametrize("lost", ["concept_embeds_weights", "visual_projection.weight"])
def test_missing_weights_are_refused(folder: Path, tmp_path: Path, lost: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match=f"lacks the weights {lost}$"):
        SafetyChecker(tmp_path, "cpu", "float32")


def test_what_cannot_be_judged_is_said(folder: Path, tmp_path: Path) -> None:
    """Comparisons with what is no number are all false: such a picture would pass."""
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    broken = SafetyChecker(tmp_path, "cpu", "float32")
    with pytest.raises(FloatingPointError, match="left the finite range"):
        broken.margins([GREEN_PICTURE])


def test_a_thread_of_an_image_is_refused(checker: SafetyChecker) -> None:
    image = np.zeros((MAX_ASPECT_RATIO + 1, 1, 3), np.uint8)
    with pytest.raises(ValueError, match="1 x 101 pixels cannot be checked"):
        checker.margins([image])
    checker.margins([image[1:]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_precisions_find_the_same(folder: Path, dtype: str) -> None:
    half = SafetyChecker(folder, "cpu", dtype)
    assert verdict_of(half, RED_PICTURE).found("auto") == (CONCEPT,)
    assert verdict_of(half, GREEN_PICTURE).found("auto") == ()
