"""Where the tests of this folder run: on a CUDA device, or by `TCD_TEST_DEVICE=cpu` without one.

The latter is for those who write them: what needs a CUDA device is skipped then, and the rest
shows that it would run.
"""

import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import diffusers
import pytest
import torch

from configs.app import Limits, ModelArgs, ModelUserConfig
from configs.families import FAMILIES
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from tests.deployments.diffusion.engine.pipelines import Pipelines, Place
from tests.deployments.diffusion.engine.tasks import Checkpoint

ROOMY = Limits(max_batch=64, max_running=64, max_step_ms=float("inf"))
PREDATE_THE_KEY = ("sd15", "sd21", "sd15-inpainting")  # their real configs have no `force_upcast`


class EngineOn(Protocol):
    """Starts an engine; the test's end stops it."""

    def __call__(
        self,
        args: ModelArgs,
        dtype: torch.dtype = torch.float32,
        *,
        loras: dict[str, str] | None = None,
        motion_loras: dict[str, str] | None = None,
        limits: Limits = ROOMY,
        device: torch.device | None = None,
    ) -> Engine: ...


PipelinesOf = Callable[[Checkpoint, torch.dtype], Pipelines]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where everything runs."""
    name = os.environ.get("TCD_TEST_DEVICE", "cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device; TCD_TEST_DEVICE=cpu tries these tests without one")
    return torch.device("cuda", 0) if name == "cuda" else torch.device(name)


@pytest.fixture(scope="session")
def cuda(device: torch.device) -> torch.device:
    """The same, for what only a CUDA device has."""
    if device.type != "cuda":
        pytest.skip("only a CUDA device has what this test needs")
    return device


@pytest.fixture(scope="session", autouse=True)
def _ieee_float32() -> None:
    """float32 is float32: torch would let convolutions have ten bits of it (TF32)."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]
    diffusers.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins of all families, written here: trained models need not be at hand."""
    from demo import base, layout

    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        list(layout.write_family(family, folder))
    for inpainting in layout.INPAINTING_FAMILIES:
        name = f"{inpainting}-inpainting"
        base.write_base(inpainting, folder / name, name=name, inpainting=True)
    list(layout.write_ip_adapters(folder))
    list(layout.write_motion(folder))
    for name in PREDATE_THE_KEY:
        drop_key(folder / name / "vae" / "config.json", "force_upcast")
    return folder


def drop_key(file: Path, key: str) -> None:
    """Takes a key out of a JSON file."""
    config = json.loads(file.read_text())
    del config[key]
    file.write_text(json.dumps(config))


@pytest.fixture
def engine_on(device: torch.device) -> Iterator[EngineOn]:
    """Engines of one test."""
    started: list[Engine] = []
    usual = device

    def make(
        args: ModelArgs,
        dtype: torch.dtype = torch.float32,
        *,
        loras: dict[str, str] | None = None,
        motion_loras: dict[str, str] | None = None,
        limits: Limits = ROOMY,
        device: torch.device | None = None,
    ) -> Engine:
        # Where there is one, "auto" is the first CUDA device.
        place = "auto" if device is None and usual.type == "cuda" else str(device or usual)
        name = str(dtype).removeprefix("torch.")
        placed = args.model_copy(update={"device": place, "dtype": name})
        config = ModelUserConfig(loras=loras or {}, motion_loras=motion_loras or {}, limits=limits)
        started.append(Engine(load(placed), config))
        return started[-1]

    yield make
    for engine in started:
        engine.stop()
    started.clear()
    gc.collect()
    if usual.type == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def pipelines_of(device: torch.device) -> PipelinesOf:
    """diffusers' pipelines on the same device, loaded once."""
    made: dict[tuple[Checkpoint, torch.dtype], Pipelines] = {}

    def get(checkpoint: Checkpoint, dtype: torch.dtype) -> Pipelines:
        key = checkpoint, dtype
        if key not in made:
            made[key] = Pipelines(checkpoint, Place(device, dtype))
        return made[key]

    return get
