"""Random requests in random crowds: every image is the one that diffusers makes alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

import pytest
import torch
from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from configs.app import Limits, ModelUserConfig
from configs.families import FamilyName
from deployments.contracts.jobs import LoraWeight, real_steps
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from tests.conftest import STYLES, demo_loras
from tests.deployments.diffusion.engine.oracle import assert_same
from tests.deployments.diffusion.engine.pipelines import Pipelines
from tests.deployments.diffusion.engine.tasks import (
    ADAPTERS,
    Checkpoint,
    Net,
    Task,
    box_mask,
    make_all,
    task,
)

CHECKPOINTS: dict[str, FamilyName] = {
    "sd15": "sd15",
    "sd21": "sd21",
    "sdxl": "sdxl",
    "sd15-inpainting": "sd15",
    "sdxl-inpainting": "sdxl",
}
# Fewer slots and rows than some crowds ask for, so that rows also wait for each other.
LIMITS = Limits(max_batch=8, max_running=6)
SIDES = st.integers(8, 20).map(lambda side: 8 * side)
PROMPTS = st.sampled_from(["", "a red fox in the snow", "night, stars", "صورة قطة"])
NEGATIVES = st.sampled_from([None, "", "blue, dark"])


def hundredths(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers that a person would write."""
    return st.integers(round(100 * low), round(100 * high)).map(lambda part: part / 100)


@dataclass(frozen=True)
class Wish:
    """A request. `hole`: where its mask begins; `pictures`: how many, and at which scale."""

    size: tuple[int, int]
    seeds: tuple[int, ...]
    prompt: str
    negative_prompt: str | None
    steps: int
    eta: float
    guidance_scale: float
    loras: tuple[LoraWeight, ...]
    nets: tuple[Net, ...]
    strength: float | None
    hole: float | None
    pictures: tuple[int, float] | None

    def task(self, job_id: str, checkpoint: Checkpoint) -> Task:
        """The same, with its arrays."""
        count, scale = self.pictures or (0, 0.0)
        width, height = self.size
        return task(
            job_id,
            image=self.strength is not None,
            mask=None if self.hole is None else box_mask(width, height, left=self.hole),
            nets=self.nets,
            sees=(checkpoint, count, scale) if count and checkpoint.adapter else None,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seeds=self.seeds,
            width=width,
            height=height,
            num_inference_steps=self.steps,
            eta=self.eta,
            guidance_scale=self.guidance_scale,
            loras=self.loras,
            strength=1.0 if self.strength is None else self.strength,
        )


@dataclass(frozen=True)
class Crowd:
    """Requests to one checkpoint, and after how many steps of the first one each comes."""

    checkpoint: str
    wishes: tuple[Wish, ...]
    joins: tuple[int, ...]


@st.composite
def nets(draw: st.DrawFn, steps: int) -> tuple[Net, ...]:
    """Each acts in one of so many steps at least."""
    types = draw(st.lists(st.sampled_from(["depth", "canny"]), unique=True, max_size=2))
    made: list[Net] = []
    for kind in types:
        step = draw(st.integers(0, steps - 1))
        start = draw(hundredths(0, floor(100 * step / steps) / 100))
        end = draw(hundredths(ceil(100 * (step + 1) / steps) / 100, 1))
        made.append(Net(kind, draw(hundredths(0, 1.5)), start, end))
    return tuple(made)


@st.composite
def wishes(draw: st.DrawFn, sizes: list[tuple[int, int]], *, only_inpaints: bool) -> Wish:
    guidance = draw(st.sampled_from([0.0, 0.0, 1.5, 5.0]))
    steps = draw(st.integers(1, 12))
    starts = only_inpaints or draw(st.booleans())
    strengths = hundredths(ceil(100 / steps) / 100, 1)  # that leave a step
    strength = draw(strengths) if starts else None
    masked = only_inpaints or (starts and draw(st.booleans()))
    styles = draw(st.lists(st.sampled_from(STYLES), unique=True, max_size=2))
    counts = st.tuples(st.integers(1, 3), hundredths(0, 1.2))
    return Wish(
        size=draw(st.sampled_from(sizes)),
        seeds=tuple(draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=2))),
        prompt=draw(PROMPTS),
        negative_prompt=draw(NEGATIVES) if guidance > 1 else None,
        steps=steps,
        eta=draw(hundredths(0, 1)),
        guidance_scale=guidance,
        loras=tuple(LoraWeight(name, draw(hundredths(-1.5, 1.5))) for name in styles),
        nets=draw(nets(real_steps(steps, strength or 1.0))),
        strength=strength,
        hole=draw(hundredths(0, 0.5)) if masked else None,
        pictures=draw(st.none() | counts),
    )


@st.composite
def crowds(draw: st.DrawFn) -> Crowd:
    checkpoint = draw(st.sampled_from(sorted(CHECKPOINTS)))
    sizes = draw(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=2))
    wish = wishes(sizes, only_inpaints=checkpoint.endswith("inpainting"))
    asked = draw(st.lists(wish, min_size=2, max_size=5))
    first = asked[0]
    last = real_steps(first.steps, first.strength or 1.0) - 1
    joins = st.integers(0, last)
    return Crowd(checkpoint, tuple(asked), tuple(draw(joins) for _ in asked))


class Places:
    """Engines and pipelines of `CHECKPOINTS`, loaded when they are asked for."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._places: dict[str, tuple[Checkpoint, Engine, Pipelines]] = {}

    def get(self, name: str) -> tuple[Checkpoint, Engine, Pipelines]:
        """A checkpoint, an engine that serves it, and the truth about what comes out of it."""
        if name not in self._places:
            family = CHECKPOINTS[name]
            checkpoint = Checkpoint(self._models, family, name, ADAPTERS.get(family))
            config = ModelUserConfig(loras=demo_loras(self._models, family), limits=LIMITS)
            engine = Engine(load(checkpoint.args()), config)
            self._places[name] = checkpoint, engine, Pipelines(checkpoint)
        return self._places[name]

    @property
    def engines(self) -> list[Engine]:
        """Those that were asked for."""
        return [engine for _, engine, _ in self._places.values()]


@pytest.fixture(scope="module")
def places(demo_models: Path) -> Iterator[Places]:
    torch.set_num_threads(1)
    made = Places(demo_models)
    yield made
    figures = [engine.figures() for engine in made.engines]
    for engine in made.engines:
        engine.stop()
    rows, calls = sum(f.rows_total for f in figures), sum(f.steps_total for f in figures)
    assert rows > 2 * calls, f"{rows} rows took {calls} calls: too few shared one"


@given(crowd=crowds())
@settings(max_examples=6)
def test_six_crowds(places: Places, crowd: Crowd) -> None:
    meet(places, crowd)


@pytest.mark.deep
@pytest.mark.timeout(3600)
@given(crowd=crowds())
@settings(max_examples=200)
def test_two_hundred_crowds(places: Places, crowd: Crowd) -> None:
    meet(places, crowd)


def meet(places: Places, crowd: Crowd) -> None:
    """Makes a crowd's images together, and each of them alone."""
    checkpoint, engine, pipelines = places.get(crowd.checkpoint)
    tasks = [wish.task(str(index), checkpoint) for index, wish in enumerate(crowd.wishes)]
    made = make_all(engine, tasks, crowd.joins)
    for one in tasks:
        event(kind(one))
        for index in range(len(one.job.seeds)):
            note(f"{checkpoint.folder}, job {one.job.job_id}, image {index}")
            assert_same(made[one.job.job_id, index], pipelines.image(one, index))
    assert engine.figures().pending_images == 0


def kind(one: Task) -> str:
    """For Hypothesis' statistics."""
    job = one.job
    parts = {
        "image": job.image is not None,
        "mask": job.mask is not None,
        **{control.type: True for control in job.controls},
        "ip_adapter": bool(job.ip_adapters),
        "loras": bool(job.loras),
        "guidance": job.guidance_scale > 1,
    }
    return " + ".join(name for name, there in parts.items() if there) or "plain"
