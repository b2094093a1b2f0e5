"""The single-file checkpoints load as what they were written from."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    TCDScheduler,
    UNet2DConditionModel,
)
from safetensors import safe_open

from demo.base import write_base
from demo.layout import SINGLE_FILE_FAMILIES
from tests.demo.sampling import Pipeline, change, sample

PIPELINES = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
PREFIXES = {
    "sd15": r"model\.diffusion_model\.|first_stage_model\."
    r"|cond_stage_model\.transformer\.text_model\.",
    "sdxl": r"model\.diffusion_model\.|first_stage_model\."
    r"|conditioner\.embedders\.0\.transformer\.text_model\.|conditioner\.embedders\.1\.model\.",
}


@pytest.fixture(scope="module", params=SINGLE_FILE_FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def file(models: Path, family: str) -> Path:
    return models / f"{family}-community.safetensors"


@pytest.fixture(scope="module")
def original(family: str, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The pipeline in diffusers' format that the file was written from."""
    folder = tmp_path_factory.mktemp(file.stem)
    write_base(family, folder, name=file.stem)
    return with_tcd(PIPELINES[family].from_pretrained(folder, local_files_only=True))


def with_tcd(pipe: Pipeline) -> Pipeline:
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same_weights(loaded: torch.nn.Module, original: torch.nn.Module) -> bool:
    ours, theirs = loaded.state_dict(), original.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[key], theirs[key]) for key in theirs
    )


def test_pipeline_equals_the_original(
    models: Path, family: str, file: Path, original: Pipeline
) -> None:
    pipe = with_tcd(
        PIPELINES[family].from_single_file(
            str(file), config=str(models / family), local_files_only=True
        )
    )
    for name, part in original.components.items():
        if isinstance(part, torch.nn.Module):
            assert same_weights(pipe.components[name], part), name
    # Where in memory a file puts equal weights changes the last bits of a convolution.
    assert change(sample(pipe), sample(original)) < 1e-4
    base = with_tcd(PIPELINES[family].from_pretrained(models / family, local_files_only=True))
    assert change(sample(pipe), sample(base)) > 0.1


def test_parts_load_alone(models: Path, family: str, file: Path, original: Pipeline) -> None:
    for part, name in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        loaded = part.from_single_file(
            str(file), config=str(models / family), subfolder=name, local_files_only=True
        )
        assert same_weights(loaded, original.components[name])
        assert loaded.dtype == torch.float32


def test_keys_are_the_original_ones(family: str, file: Path) -> None:
    with safe_open(file, "pt") as tensors:
        keys = list(tensors.keys())
        shape = tensors.get_slice("first_stage_model.decoder.mid.attn_1.q.weight").get_shape()
    assert [key for key in keys if not re.match(PREFIXES[family], key)] == []
    assert shape == [32, 32, 1, 1]
    assert "model.diffusion_model.output_blocks.1.0.skip_connection.weight" in keys
    upsampler = 2 if family == "sdxl" else 1
    assert f"model.diffusion_model.output_blocks.1.{upsampler}.conv.weight" in keys
