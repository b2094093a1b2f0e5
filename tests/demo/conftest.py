"""The stand-in models, and a pipeline on each base."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, TCDScheduler

from demo.base import FAMILIES
from tests.demo.sampling import Pipeline, sample


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Such small tensors are slower on two threads, and much slower on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def models(demo_models: Path) -> Path:
    """What every test of the project uses; one here writes it anew and compares."""
    return demo_models


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipe(models: Path, family: str) -> Pipeline:
    pipeline_class = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = pipeline_class.from_pretrained(models / family, local_files_only=True)
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def plain_latents(pipe: Pipeline) -> torch.Tensor:
    return sample(pipe)
