"""300 swaps among 20 styles under load: no memory is lost, and no image has another's style."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, combinations, count
from pathlib import Path
from random import Random
from threading import Semaphore

import psutil
import pytest
from safetensors.torch import load_file, save_file

from configs.app import Limits
from demo.standins import write_style_lora
from deployments.contracts.jobs import FailedImage, FinishedImage, ImageJob, JobEvent
from deployments.diffusion.engine.adapters.changes import LowRank
from deployments.diffusion.engine.engine import Engine
from tests.conftest import MakeEngine
from tests.deployments.diffusion.engine.harness import WAIT_S, image_job, styles
from tests.deployments.diffusion.engine.oracle import Answer, Oracle, assert_same, distance

STYLE_COUNT, SWAPS, WARM_UP = 20, 300, 60
IN_FLIGHT = 6
KINDS = ("neon", "papercut", "neon", "ink")
KEPT = ("text_encoder", "mid_block", "up_blocks_0", "up_blocks.0", "up_blocks_1", "up_blocks.1")
BUDGET = Limits(lora_budget_mb=1, max_running=IN_FLIGHT)
MEASURES = 8


@pytest.fixture(scope="module")
def sources(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """20 styles by name, of three kinds, each with weights of its own; about four fit the budget
    once they are cut down to their largest layers."""
    folder = tmp_path_factory.mktemp("styles")
    written: dict[str, str] = {}
    for n in range(STYLE_COUNT):
        file = folder / f"style-{n}.safetensors"
        write_style_lora(KINDS[n % len(KINDS)], "sd15", demo_models / "sd15", file, seed=100 + n)
        whole = load_file(file)
        save_file({k: v for k, v in whole.items() if any(part in k for part in KEPT)}, file)
        written[f"style-{n}"] = str(file)
    return written


@pytest.fixture(scope="module")
def truth(sources: dict[str, str], demo_models: Path) -> dict[str, Answer]:
    """What diffusers makes with each style."""
    oracle = Oracle(demo_models, "sd15", sources)
    answers: dict[str, Answer] = {}
    for name in sources:
        answers[name] = oracle.image(job_with(name, "truth"))
        oracle.forget(name)
    return answers


def job_with(name: str, job_id: str) -> ImageJob:
    steps = 1 + int(name[-1]) % 2
    return image_job(
        job_id, width=64, height=64, num_inference_steps=steps, loras=styles(**{name: 1.0})
    )


@dataclass
class Load:
    """Keeps an engine busy with jobs of changing styles, and checks each image as it comes."""

    engine: Engine
    truth: dict[str, Answer]
    places: Semaphore = field(default_factory=lambda: Semaphore(IN_FLIGHT))
    wrong: list[str] = field(default_factory=list)
    images: int = 0
    ids: Iterator[int] = field(default_factory=count)
    random: Random = field(default_factory=lambda: Random(0))

    def until_loads(self, loads: int) -> None:
        """Goes on until the engine has loaded adapters so often, and waits for the last image."""
        while self.engine.figures().lora_loads_total < loads:
            for name in self.random.sample(sorted(self.truth), STYLE_COUNT):
                assert self.places.acquire(timeout=WAIT_S)
                self._submit(name)
        for _ in range(IN_FLIGHT):
            assert self.places.acquire(timeout=WAIT_S)
        self.places.release(IN_FLIGHT)

    def _submit(self, name: str) -> None:
        def check(event: JobEvent) -> None:
            if isinstance(event, FinishedImage):
                try:
                    assert_same(event, self.truth[name])
                except AssertionError as error:
                    self.wrong.append(f"{name}: {error}")
                self.images += 1
            if isinstance(event, FailedImage):
                self.wrong.append(f"{name}: {event.error!r}")
            if isinstance(event, FinishedImage | FailedImage):
                self.places.release()

        self.engine.submit(job_with(name, f"{name} {next(self.ids)}"), check)


def memory() -> int:
    """Bytes that this process holds of the machine's memory."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def most_that_fit(sources: dict[str, str], budget_bytes: int) -> int:
    """How many of the smallest styles fit a budget together."""
    sizes = [sum(t.nbytes for t in load_file(file).values()) for file in sources.values()]
    return sum(together <= budget_bytes for together in accumulate(sorted(sizes)))


def adapter_layers() -> int:
    """How many layers of adapters are alive anywhere."""
    gc.collect()
    return sum(issubclass(type(thing), LowRank) for thing in gc.get_objects())


def test_the_styles_are_told_apart(truth: dict[str, Answer]) -> None:
    for one, other in combinations(truth, 2):
        assert distance(truth[one].latents, truth[other].latents) > 1e-2


@pytest.mark.timeout(600)
def test_300_swaps_leave_memory_flat_and_every_image_right(
    make_engine: MakeEngine, sources: dict[str, str], truth: dict[str, Answer]
) -> None:
    engine = make_engine(loras=sources, limits=BUDGET)
    load = Load(engine, truth)
    load.until_loads(WARM_UP)
    layers = adapter_layers()
    held = [memory()]
    while (done := engine.figures().lora_loads_total) < SWAPS:
        load.until_loads(min(SWAPS, done + (SWAPS - WARM_UP) // MEASURES))
        held.append(memory())

    assert load.wrong == []
    assert load.images >= SWAPS
    figures = engine.figures()
    assert figures.lora_evictions_total >= SWAPS - STYLE_COUNT
    assert figures.lora_bytes <= 2**20
    assert 2 <= figures.loras_resident <= most_that_fit(sources, 2**20)
    assert figures.rows_total > figures.steps_total, "no two styles ever shared a batch"
    assert len(held) >= MEASURES / 2
    assert max(held) <= 1.05 * held[0], f"MiB held: {[h // 2**20 for h in held]}"
    assert adapter_layers() <= 1.5 * layers, "old adapters are kept alive"
