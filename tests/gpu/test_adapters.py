"""300 swaps of adapters on a device, and adapters that arrive late.

The first covers that no image is made with an adapter that has only half arrived: copies run on
a stream of their own while steps run, and every image is looked at.
"""

from pathlib import Path

import pytest
import torch

from deployments.diffusion.engine.adapters.reader import LoraWeights
from tests.conftest import model_args
from tests.deployments.diffusion.engine.adapters.test_lora_swaps import (
    BUDGET,
    MEASURES,
    STYLE_COUNT,
    SWAPS,
    WARM_UP,
    Load,
    sources,
    truth,
)
from tests.deployments.diffusion.engine.oracle import Answer
from tests.gpu.conftest import EngineOn
from tests.gpu.memory import allocated

__all__ = ["sources", "truth"]  # fixtures

pytestmark = pytest.mark.gpu
MIB = 2**20
LATE = 20_000_000  # cycles of the device: some ten milliseconds


def test_300_swaps(
    demo_models: Path,
    device: torch.device,
    engine_on: EngineOn,
    sources: dict[str, str],
    truth: dict[str, Answer],
) -> None:
    engine = engine_on(model_args(demo_models, "sd15"), loras=sources, limits=BUDGET)
    load = Load(engine, truth)
    load.until_loads(WARM_UP)
    held: list[int] = []
    while (done := engine.figures().lora_loads_total) < SWAPS:
        if device.type == "cuda":
            held.append(allocated(device))
        load.until_loads(min(SWAPS, done + (SWAPS - WARM_UP) // MEASURES))

    assert load.wrong == []
    assert load.images >= SWAPS
    figures = engine.figures()
    assert figures.lora_evictions_total >= SWAPS - STYLE_COUNT
    assert figures.lora_bytes <= BUDGET.lora_budget_mb * MIB
    # What is multiplied now may stand beside what comes next, each once more put together.
    room = 4 * BUDGET.lora_budget_mb * MIB
    assert not held or max(held) - held[0] <= room, f"MiB held: {[h / MIB for h in held]}"


def test_steps_wait_for_an_adapter_that_is_still_on_its_way(
    demo_models: Path,
    cuda: torch.device,
    engine_on: EngineOn,
    sources: dict[str, str],
    truth: dict[str, Answer],
) -> None:
    engine = engine_on(model_args(demo_models, "sd15"), loras=sources, limits=BUDGET)
    shelf = engine._shelf
    move = shelf._move

    def late(key: str, weights: LoraWeights) -> None:
        with torch.cuda.stream(shelf._stream):
            torch.cuda._sleep(LATE)
        move(key, weights)

    shelf._move = late  # type: ignore[method-assign]
    load = Load(engine, truth)
    load.until_loads(2 * STYLE_COUNT)
    assert load.wrong == []
