"""Every image of a mixed batch is the one that diffusers makes of its request alone."""

from functools import partial
from itertools import combinations

import pytest
from torch import Tensor, nn

from configs.app import Limits
from configs.families import FAMILIES, FamilyName
from deployments.contracts.jobs import ImageJob, PartialImage, Progress
from deployments.diffusion.engine.engine import Engine
from tests.conftest import MakeEngine
from tests.deployments.diffusion.engine.conftest import Oracles
from tests.deployments.diffusion.engine.harness import Gate, Joins, Listener, image_job, styles
from tests.deployments.diffusion.engine.oracle import (
    PIXEL_TOLERANCE,
    assert_same,
    distance,
    levels_apart,
)

ROOMY = Limits(max_batch=24, max_step_ms=float("inf"))
CLEARLY_DIFFERENT = 1e-2  # ten times the tolerance
# sd21 goes the ways of sd15, in other sizes: one crowd of it is enough, and the rest deep.
DEEP_OF_SD21 = ["sd15", "sdxl", pytest.param("sd21", marks=pytest.mark.deep)]

MARATHON = image_job(
    "marathon",
    prompt="a blue whale in the ocean at night",
    seeds=(7,),
    num_inference_steps=50,
    loras=styles(neon=1.0, papercut=0.5),
    partial_images=3,
)
# By the step of the marathon at which they join.
JOINING: dict[int, tuple[ImageJob, ...]] = {
    3: (
        image_job("13", seeds=(6,), num_inference_steps=13, guidance_scale=5.0),
        image_job(
            "13 mix",
            prompt="night, stars",
            seeds=(9,),
            num_inference_steps=13,
            eta=1.0,
            loras=styles(papercut=-0.8, ink=0.4, neon=1.3),
        ),
    ),
    4: (
        image_job(
            "8",
            prompt="a small house by the lake",
            negative_prompt="blurry, dark",
            seeds=(5,),
            num_inference_steps=8,
            guidance_scale=5.0,
            loras=styles(ink=1.0),
        ),
        image_job("8 plain", seeds=(2**63 - 1,), num_inference_steps=8, eta=0.0),
    ),
    6: (
        image_job("1", prompt="a red ball on the table", num_inference_steps=1, eta=0.0),
        image_job("2", seeds=(2, 3), num_inference_steps=2, eta=0.3, loras=styles(papercut=1.0)),
        image_job(
            "4", seeds=(4,), num_inference_steps=4, eta=1.0, loras=styles(ink=0.7, neon=-0.5)
        ),
        image_job("4 empty", prompt="", seeds=(8,), eta=0.0, loras=styles(neon=1.0)),
    ),
    25: (
        image_job("wide 4", width=160, height=96, seeds=(20,), loras=styles(papercut=0.6)),
        image_job("wide 2", width=160, height=96, seeds=(21,), num_inference_steps=2, eta=1.0),
        image_job(
            "odd 8",
            width=72,
            height=104,
            seeds=(22,),
            num_inference_steps=8,
            guidance_scale=5.0,
            negative_prompt="red",
            loras=styles(ink=-1.0),
        ),
    ),
    40: (image_job("late", seeds=(30,), num_inference_steps=13, loras=styles(neon=-2.0)),),
}


def watch_batches(engine: Engine) -> list[list[int]]:
    """Collects the timesteps of each UNet call's rows, each call after all rows are ready."""
    calls: list[list[int]] = []
    joins = Joins(engine)

    def note(_: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        calls.append([int(t) for t in args[1]])
        joins.wait()

    engine.components.unet.register_forward_pre_hook(note)
    return calls


def warm(listener: Listener) -> None:
    """Loads the styles, so that jobs which use them join without delay."""
    everything = styles(papercut=1.0, ink=1.0, neon=1.0)
    listener.submit(image_job("warm", num_inference_steps=1, loras=everything))
    listener.wait()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_equals_diffusers_row_by_row(
    family: FamilyName, make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine(family, limits=ROOMY)
    listener = Listener(engine)
    warm(listener)
    calls = watch_batches(engine)
    for step, jobs in JOINING.items():
        listener.at("marathon", step, partial(listener.submit, *jobs))
    listener.submit(MARATHON)
    listener.wait()

    oracle = oracle_of(family)
    for job in [MARATHON, *(job for jobs in JOINING.values() for job in jobs)]:
        for index in range(len(job.seeds)):
            assert_same(listener.image(job.job_id, index), oracle.image(job, index))

    fullest = max(calls, key=len)
    assert len(fullest) == 12, "the jobs that join at step 6 share a call with all before them"
    assert len(set(fullest)) == 4, "rows that joined at different steps stand at different ones"
    figures = engine.figures()
    assert figures.rows_total > 2 * figures.steps_total
    assert figures.failed_total == 0


def test_each_row_of_sdxl_is_told_its_own_sizes(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine, oracle = make_engine("sdxl", limits=ROOMY), oracle_of("sdxl")
    jobs = [
        image_job("plain", seeds=(3,)),
        image_job("small once", seeds=(3,), original_size=(48, 64)),
        image_job("told larger", seeds=(3,), target_size=(1024, 768)),
        image_job("both", seeds=(3,), original_size=(1, 16_384), target_size=(64, 64)),
        image_job("guided", seeds=(3,), original_size=(48, 64), guidance_scale=4.0),
    ]
    listener = Listener(engine)
    with Gate(engine) as gate:
        listener.submit(image_job("at the gate"))
        gate.wait()
        listener.submit(*jobs)
    listener.wait()
    assert max(map(len, gate.calls)) > len(jobs), "they never shared a call"
    found = [listener.image(job.job_id) for job in jobs]
    for job, image in zip(jobs, found, strict=True):
        assert_same(image, oracle.image(job))
    for one, other in combinations(found, 2):
        assert distance(one.latents, other.latents) > CLEARLY_DIFFERENT


@pytest.mark.deep
@pytest.mark.parametrize("family", FAMILIES)
def test_the_mixed_batch_holds_no_chaotic_request(family: FamilyName, oracle_of: Oracles) -> None:
    """Rounding is about 1e-7, so that the tolerance leaves room for a growth of 1000."""
    for job in [MARATHON, *(job for jobs in JOINING.values() for job in jobs)]:
        assert oracle_of(family).growth(job) < 300, f"{job.job_id} is chaotic"


@pytest.mark.parametrize("family", DEEP_OF_SD21)
def test_partial_images_are_the_x0_estimates_of_real_steps(
    family: FamilyName, make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    listener = Listener(make_engine(family))
    job = image_job("partial", num_inference_steps=8, partial_images=3, guidance_scale=5.0)
    crowd = image_job("crowd", num_inference_steps=6, seeds=(4, 5), partial_images=1)
    listener.submit(job, crowd)
    listener.wait()

    oracle = oracle_of(family)
    estimates = oracle.image(job).estimates
    previews = [e for e in listener.events["partial"] if isinstance(e, PartialImage)]
    assert [(e.partial_index, e.step) for e in previews] == [(0, 2), (1, 4), (2, 6)]
    for preview in previews:
        shown = oracle.decode(estimates[preview.step - 1])
        assert levels_apart(preview.pixels, shown) <= PIXEL_TOLERANCE
        other = oracle.decode(estimates[preview.step])
        assert levels_apart(preview.pixels, other) > PIXEL_TOLERANCE, "the steps look alike"


@pytest.mark.parametrize("family", DEEP_OF_SD21)
def test_every_field_of_a_request_changes_its_image(
    family: FamilyName, make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    guided: dict[str, object] = {"guidance_scale": 5.0}
    variants: dict[str, dict[str, object]] = {
        "plain": {},
        "prompt": {"prompt": "a blue whale in the ocean at night"},
        "seed": {"seeds": (2,)},
        "steps": {"num_inference_steps": 5},
        "eta 0": {"eta": 0.0},
        "eta 1": {"eta": 1.0},
        "guided": guided,
        "guided more": {"guidance_scale": 7.5},
        "negative": {**guided, "negative_prompt": "red"},
        "other negative": {**guided, "negative_prompt": "a dark photograph"},
        "papercut": {"loras": styles(papercut=1.0)},
        "papercut 0.5": {"loras": styles(papercut=0.5)},
        "papercut -1": {"loras": styles(papercut=-1.0)},
        "ink": {"loras": styles(ink=1.0)},
        "neon": {"loras": styles(neon=1.0)},
        "papercut and ink": {"loras": styles(papercut=1.0, ink=1.0)},
        "ink, negative": {**guided, "negative_prompt": "red", "loras": styles(ink=1.0)},
    }
    jobs = {name: image_job(name, **fields) for name, fields in variants.items()}
    listener = Listener(make_engine(family, limits=ROOMY))
    listener.submit(*jobs.values())
    listener.wait()

    for name, job in jobs.items():
        assert_same(listener.image(name), oracle_of(family).image(job))
    for one, other in combinations(jobs, 2):
        apart = distance(listener.image(one).latents, listener.image(other).latents)
        assert apart > CLEARLY_DIFFERENT, f"{one!r} and {other!r} look alike"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_negative_prompt_is_zeros_on_sdxl_and_the_empty_text_elsewhere(
    family: FamilyName, make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    absent = image_job("absent", guidance_scale=5.0)
    empty = image_job("empty", guidance_scale=5.0, negative_prompt="")
    listener = Listener(make_engine(family))
    listener.submit(absent, empty)
    listener.wait()

    for job in (absent, empty):
        assert_same(listener.image(job.job_id), oracle_of(family).image(job))
    apart = distance(listener.image("absent").latents, listener.image("empty").latents)
    assert (apart > CLEARLY_DIFFERENT) == (family == "sdxl")


def test_each_seed_of_a_job_gives_its_own_image(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    listener = Listener(make_engine())
    together = image_job("together", seeds=(11, 12, 13))
    listener.submit(together)
    listener.wait()

    for index, seed in enumerate(together.seeds):
        alone = image_job("alone", seeds=(seed,))
        image = listener.image("together", index)
        assert image.seed == seed
        assert_same(image, oracle_of("sd15").image(alone))


def test_guidance_up_to_one_is_no_guidance(make_engine: MakeEngine, oracle_of: Oracles) -> None:
    engine = make_engine()
    listener = Listener(engine)
    jobs = [image_job(str(scale), guidance_scale=scale) for scale in (0.0, 0.7, 1.0)]
    with Gate(engine) as gate:
        listener.submit(*jobs)
    listener.wait()

    for job in jobs:
        assert_same(listener.image(job.job_id), oracle_of("sd15").image(job))
    assert max(len(call) for call in gate.calls) == len(jobs), "no row brings a twin"


def test_a_tiny_step_past_guidance_one_is_guidance(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    job = image_job("barely", guidance_scale=1.01, negative_prompt="blue")
    listener = Listener(make_engine())
    listener.submit(job)
    listener.wait()

    assert_same(listener.image("barely"), oracle_of("sd15").image(job))
    assert [e.step for e in listener.events["barely"] if isinstance(e, Progress)] == [1, 2, 3, 4]
