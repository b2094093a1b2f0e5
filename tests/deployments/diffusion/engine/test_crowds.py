"""The same request gives the same image alone and in any crowd."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from configs.app import Limits
from configs.families import FamilyName
from deployments.contracts.errors import Cancelled
from deployments.contracts.jobs import FailedImage, ImageJob, LoraWeight
from deployments.diffusion.engine.engine import Engine
from tests.conftest import STYLES, MakeEngine
from tests.deployments.diffusion.engine.conftest import Oracles
from tests.deployments.diffusion.engine.harness import Listener, eventually, image_job, styles
from tests.deployments.diffusion.engine.oracle import Oracle, assert_same

TARGET = image_job(
    "target",
    prompt="a red fox in the snow",
    negative_prompt="blurry",
    seeds=(42,),
    num_inference_steps=8,
    eta=0.3,
    guidance_scale=3.0,
    loras=styles(papercut=0.8, ink=-0.5),
)
numbers = count()


@dataclass(frozen=True)
class Neighbour:
    """A job that comes when the target has taken `joins` steps (0: before it), and is
    cancelled, if at all, when the target has taken `leaves` steps."""

    job: ImageJob
    joins: int
    leaves: int | None


@dataclass(frozen=True)
class Place:
    """An engine in which crowds gather, and the truth about what comes out of it."""

    engine: Engine
    oracle: Oracle


@st.composite
def neighbours(draw: st.DrawFn) -> Neighbour:
    guidance = draw(st.sampled_from([0.0, 1.5, 5.0, 12.0]))
    negatives = st.sampled_from([None, "", "blue, dark"])
    names = draw(st.lists(st.sampled_from(STYLES), unique=True))
    width, height = draw(st.sampled_from([(128, 128), (128, 128), (96, 160), (64, 72)]))
    joins = draw(st.integers(0, 7))
    job = image_job(
        f"neighbour {next(numbers)}",
        prompt=draw(st.sampled_from(["", "a red fox in the snow", "night, stars", "صورة قطة"])),
        negative_prompt=draw(negatives) if guidance > 1 else None,
        seeds=tuple(draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=2))),
        width=width,
        height=height,
        num_inference_steps=draw(st.integers(1, 12)),
        eta=draw(st.floats(0, 1)),
        guidance_scale=guidance,
        loras=tuple(LoraWeight(name, draw(st.floats(-2, 2))) for name in names),
        priority=draw(st.integers(-10, 10)),
    )
    return Neighbour(job, joins, draw(st.none() | st.integers(joins + 1, 9)))


# sd21 goes the ways of sd15, in other sizes.
@pytest.fixture(
    scope="module", params=["sd15", "sdxl", pytest.param("sd21", marks=pytest.mark.deep)]
)
def place(
    request: pytest.FixtureRequest, make_module_engine: MakeEngine, oracle_of: Oracles
) -> Iterator[Place]:
    family: FamilyName = request.param
    # Fewer slots and rows than some crowds ask for, so that rows also wait for each other.
    engine = make_module_engine(family, limits=Limits(max_batch=8, max_running=6))
    yield Place(engine, oracle_of(family))
    figures = engine.figures()
    assert figures.rows_total > figures.steps_total, "no two rows ever shared a batch"


crowds = st.lists(neighbours(), min_size=1, max_size=8)


@given(crowd=crowds)
@settings(max_examples=5)
def test_five_crowds_leave_an_image_as_it_is(place: Place, crowd: list[Neighbour]) -> None:
    meet(place, crowd)


@pytest.mark.deep
@pytest.mark.timeout(3600)
@given(crowd=crowds)
@settings(max_examples=200)
def test_two_hundred_crowds_leave_an_image_as_it_is(place: Place, crowd: list[Neighbour]) -> None:
    meet(place, crowd)


def meet(place: Place, crowd: list[Neighbour]) -> None:
    """Makes the target in the midst of a crowd, and checks it and the engine afterwards."""
    listener = Listener(place.engine)
    for neighbour in crowd:
        note(f"{neighbour}")
        if neighbour.joins:
            listener.at("target", neighbour.joins, partial(listener.submit, neighbour.job))
        else:
            listener.submit(neighbour.job)
        if neighbour.leaves is not None:
            job_id = neighbour.job.job_id
            listener.at("target", neighbour.leaves, partial(place.engine.cancel, job_id))
    listener.submit(TARGET)
    listener.wait()

    assert_same(listener.image("target"), place.oracle.image(TARGET))
    for neighbour in crowd:
        for event in listener.events[neighbour.job.job_id]:
            if isinstance(event, FailedImage):
                assert isinstance(event.error, Cancelled), repr(event.error)
                assert neighbour.leaves is not None
    assert eventually(lambda: place.engine.figures().running_rows == 0)
    assert place.engine.figures().pending_images == 0
