"""What every test may use: the demo models, engines on them, and how Hypothesis runs here."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from configs.app import Limits, ModelArgs, ModelUserConfig
from configs.families import FamilyName
from deployments.tracebacks import leave_out_messages

if TYPE_CHECKING:
    from deployments.diffusion.engine.engine import Engine

# The tests of the engine run without Ray as well: see tests/gpu.
SERVED = ["tests.serving", "tests.object_store"]
pytest_plugins = ["tests.black_hole", *(SERVED if find_spec("ray") else [])]
STYLES = ("papercut", "ink", "neon")

# Tensors this small are slower on two threads, and very slow on two busy cores. torch reads
# this when it is imported, in this process and in those that it starts.
os.environ["OMP_NUM_THREADS"] = "1"

# Shared cores make any deadline a lottery; a fixed choice of examples makes a red run repeatable.
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ci")


# Of these the whole folder, or file, is marked `alone`; and whatever uses the running service.
ALONE = (
    *("deploy", "deployments/ingress/playground", "examples", "faults", "graphs"),
    *("demo/test_run.py", "demo/test_serve.py", "fuzz/test_service.py"),
)
BESIDE = (  # not of these
    *("deploy/test_alerts.py", "deploy/test_image.py", "deploy/test_kubernetes.py"),
    "graphs/check",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tells what may run beside other tests from what may not, and has it wait for the rest.

    The service that `served` has run takes half a core for doing nothing until the session ends:
    who does not ask it comes before it starts.
    """
    asking = {item.nodeid for item in items if "served" in getattr(item, "fixturenames", ())}
    of_service = {item.path for item in items if item.nodeid in asking}
    for item in items:
        place = item.path.relative_to(Path(__file__).parent)
        alone = any(map(place.is_relative_to, ALONE)) and not any(map(place.is_relative_to, BESIDE))
        if alone or item.nodeid in asking:
            item.add_marker("alone")
    items.sort(key=lambda item: item.path in of_service)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test that draws numbers draws the same ones in each run."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


class MakeEngine(Protocol):
    """Starts an engine on a demo model; the test's end stops it."""

    def __call__(
        self,
        family: FamilyName = "sd15",
        *,
        loras: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> "Engine": ...


@pytest.fixture(params=[False, True], ids=["without messages", "whole"])
def whole(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether tracebacks in this process's log hold what errors say."""
    made = logging.getLogRecordFactory()
    if not request.param:
        leave_out_messages()
    yield request.param
    logging.setLogRecordFactory(made)


@pytest.fixture(scope="session")
def demo_models() -> Path:
    """The folder of the stand-in models, up to date."""
    from demo import standins

    # Of tests that run beside each other one writes.
    with FileLock(standins.MODELS.with_name("models.lock")):
        standins.write_all(standins.MODELS)
    return standins.MODELS


def demo_loras(models: Path, family: FamilyName) -> dict[str, str]:
    """Sources of the demo's style adapters, by name."""
    return {name: str(models / "loras" / family / f"{name}.safetensors") for name in STYLES}


def model_args(models: Path, family: FamilyName) -> ModelArgs:
    """A demo model in float32 on the CPU, its TCD-LoRA fused."""
    return ModelArgs(
        name=family,
        family=family,
        checkpoint=str(models / family),
        tcd_lora=str(models / "tcd-lora" / family),
        dtype="float32",
        device="cpu",
    )


def _engines(models: Path) -> Iterator[MakeEngine]:
    from deployments.diffusion.engine.engine import Engine
    from deployments.diffusion.engine.models.components import load

    started: list[Engine] = []

    def make(
        family: FamilyName = "sd15",
        *,
        loras: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> Engine:
        styles = demo_loras(models, family) if loras is None else dict(loras)
        config = ModelUserConfig(loras=styles, limits=limits or Limits())
        engine = Engine(load(model_args(models, family)), config)
        started.append(engine)
        return engine

    try:
        yield make
    finally:
        for engine in started:
            engine.stop()


@pytest.fixture
def make_engine(demo_models: Path) -> Iterator[MakeEngine]:
    """Engines of one test."""
    yield from _engines(demo_models)


@pytest.fixture(scope="module")
def make_module_engine(demo_models: Path) -> Iterator[MakeEngine]:
    """Engines that the tests of one file share."""
    yield from _engines(demo_models)
