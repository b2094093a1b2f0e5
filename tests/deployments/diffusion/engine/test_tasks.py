"""Every task, all in one batch: each image is the one that diffusers' own pipeline makes alone."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.app import Limits, ModelUserConfig
from configs.families import FAMILIES, FamilyName
from deployments.contracts.errors import InvalidRequest
from deployments.diffusion.engine.adapters.sources import LoraSources
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from deployments.diffusion.engine.models.vae import Posterior
from deployments.diffusion.engine.policy.admission import Admission
from deployments.diffusion.engine.prompts.tokens import Tokenizers
from tests.conftest import demo_loras
from tests.deployments.diffusion.engine.harness import Gate, styles
from tests.deployments.diffusion.engine.oracle import assert_same, distance
from tests.deployments.diffusion.engine.pipelines import Pipelines
from tests.deployments.diffusion.engine.tasks import (
    ADAPTERS,
    HEIGHT,
    PLUS_ADAPTERS,
    WIDTH,
    Checkpoint,
    Made,
    Net,
    Task,
    box_mask,
    make_all,
    task,
)

ROOMY = Limits(max_batch=64, max_running=64, max_step_ms=float("inf"))
CLEARLY_DIFFERENT = 1e-2  # ten times the tolerance
MakeFor = Callable[[Checkpoint], Engine]


@pytest.fixture
def engine_for() -> Iterator[MakeFor]:
    """Engines of one test."""
    torch.set_num_threads(1)
    started: list[Engine] = []

    def make(checkpoint: Checkpoint) -> Engine:
        loras = demo_loras(checkpoint.models, checkpoint.family)
        config = ModelUserConfig(loras=loras, limits=ROOMY)
        started.append(Engine(load(checkpoint.args()), config))
        return started[-1]

    yield make
    for engine in started:
        engine.stop()


def make_together(engine: Engine, tasks: list[Task]) -> Made:
    """All of them, held until every one has come, so that they share every call."""
    first = tasks[0]
    adapters = styles(papercut=1, ink=1, neon=1)
    engine.generate(replace(first.job, job_id="brings the adapters", loras=adapters), first.assets)
    with Gate(engine) as gate:
        engine.submit(replace(first.job, job_id="at the gate"), lambda _: None, first.assets)
        gate.wait()
        made = make_all(engine, tasks, submitted=gate.open)
    # The one at the gate goes along: it is the first task once more.
    rows = sum(
        len(one.job.seeds) * (2 if one.job.guidance_scale > 1 else 1) for one in [first, *tasks]
    )
    together = [timesteps for timesteps in gate.calls if len(timesteps) == rows]
    assert together, f"{rows} rows never shared a call: {[len(call) for call in gate.calls]}"
    assert len(set(together[0])) > 1, "all rows of the call stand at the same timestep"
    return made


def assert_all_same(made: Made, tasks: list[Task], pipelines: Pipelines) -> None:
    for one in tasks:
        for index in range(len(one.job.seeds)):
            try:
                assert_same(made[one.job.job_id, index], pipelines.image(one, index))
            except AssertionError as error:
                raise AssertionError(f"{one.job.job_id}/{index}: {error}") from error


def mixed(checkpoint: Checkpoint) -> list[Task]:
    """Every task of the guide, and what can be combined of them."""
    depth, canny = Net("depth"), Net("canny", 0.8)
    part = [Net("depth", 0.5, 0.2, 1.0), Net("canny", 0.9, 0.0, 0.6)]
    mask, other = box_mask(), box_mask(left=0.1)
    tasks = [
        task("plain", num_inference_steps=10, seeds=(1, 2)),
        task("styles", seeds=(3,), loras=styles(papercut=0.8, ink=-0.5)),
        task("depth", seeds=(4,), num_inference_steps=5, nets=[depth], eta=0.0),
        task("canny", seeds=(5,), guidance_scale=4.0, nets=[Net("canny", 0.8, 0.0, 0.6)]),
        task("depth and canny", seeds=(6,), num_inference_steps=8, nets=part),
        task("canny and depth", seeds=(7,), num_inference_steps=7, nets=part[::-1], eta=1.0),
        task("image", seeds=(8,), num_inference_steps=8, image=True, strength=0.6),
        task("image, noise only", seeds=(9,), image=True, strength=1.0, guidance_scale=3.0),
        task("image, last step", seeds=(10,), image=True, strength=0.25),
        task(
            "image and depth",
            seeds=(11,),
            num_inference_steps=8,
            image=True,
            strength=0.6,
            nets=[Net("depth", 0.7, 0.0, 0.5)],
        ),
        task(
            "image, styles, two nets",
            seeds=(12,),
            num_inference_steps=6,
            image=True,
            strength=0.9,
            nets=part,
            loras=styles(neon=1.0),
            guidance_scale=2.5,
            negative_prompt="blurry",
        ),
        task("hole", seeds=(13, 14), num_inference_steps=8, image=True, mask=mask, strength=0.99),
        task(
            "hole, guided",
            seeds=(15,),
            num_inference_steps=6,
            image=True,
            mask=other,
            strength=0.5,
            guidance_scale=3.0,
            eta=0.0,
        ),
        task("hole, noise only", seeds=(16,), image=True, mask=other, strength=1.0),
        task(
            "hole and canny",
            seeds=(17,),
            num_inference_steps=8,
            image=True,
            mask=mask,
            strength=0.7,
            nets=[canny],
        ),
    ]
    if checkpoint.adapter is None:
        return tasks
    everything = task(
        "everything",
        prompt="night, stars",
        negative_prompt="dark",
        seeds=(24,),
        num_inference_steps=9,
        eta=0.7,
        guidance_scale=2.0,
        image=True,
        mask=other,
        strength=0.8,
        nets=part,
        sees=(checkpoint, 2, 0.7),
        loras=styles(papercut=0.5, neon=-0.4),
    )
    return [
        *tasks,
        task("one picture", seeds=(20,), sees=(checkpoint, 1, 0.6)),
        task("two pictures", seeds=(21,), num_inference_steps=6, sees=(checkpoint, 2, 1.0)),
        task(
            "picture and canny, guided",
            seeds=(22,),
            num_inference_steps=6,
            guidance_scale=3.0,
            sees=(checkpoint, 2, 0.5),
            nets=[canny],
        ),
        task(
            "picture and image",
            seeds=(23,),
            num_inference_steps=5,
            image=True,
            strength=0.8,
            sees=(checkpoint, 3, 0.4),
        ),
        task(
            "picture and hole",
            seeds=(25,),
            image=True,
            mask=mask,
            strength=0.99,
            sees=(checkpoint, 1, 0.9),
        ),
        everything,
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_tasks_in_one_batch(family: FamilyName, demo_models: Path, engine_for: MakeFor) -> None:
    checkpoint = Checkpoint(demo_models, family, family, ADAPTERS.get(family))
    tasks = mixed(checkpoint)
    made = make_together(engine_for(checkpoint), tasks)
    assert_all_same(made, tasks, Pipelines(checkpoint))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_unet_of_nine_channels(
    family: FamilyName, demo_models: Path, engine_for: MakeFor
) -> None:
    checkpoint = Checkpoint(demo_models, family, f"{family}-inpainting", ADAPTERS[family])
    mask, other = box_mask(), box_mask(left=0.1)
    tasks = [
        task("one", seeds=(1,), num_inference_steps=8, image=True, mask=mask, strength=0.99),
        task("other mask", seeds=(1,), num_inference_steps=8, image=True, mask=other, strength=0.6),
        task("noise only", seeds=(2,), image=True, mask=other, strength=1.0, guidance_scale=4.0),
        task(
            "styles and canny",
            seeds=(3,),
            num_inference_steps=6,
            image=True,
            mask=mask,
            strength=0.8,
            nets=[Net("canny", 0.7, 0.0, 0.6)],
            loras=styles(ink=1.0),
        ),
        task(
            "everything",
            seeds=(4,),
            num_inference_steps=6,
            guidance_scale=2.0,
            negative_prompt="blurry",
            image=True,
            mask=other,
            strength=0.9,
            nets=[Net("depth", 0.5), Net("canny", 0.5)],
            sees=(checkpoint, 2, 0.5),
        ),
    ]
    made = make_together(engine_for(checkpoint), tasks)
    assert_all_same(made, tasks, Pipelines(checkpoint))


def test_sdxl_is_told_sizes_in_every_task(demo_models: Path, engine_for: MakeFor) -> None:
    checkpoint = Checkpoint(demo_models, "sdxl", "sdxl", ADAPTERS["sdxl"])
    small: dict[str, Any] = {"num_inference_steps": 8, "original_size": (48, 64)}
    both: dict[str, Any] = small | {"original_size": (1024, 768), "target_size": (64, 48)}
    tasks = [
        task("image", seeds=(1,), image=True, strength=0.6, **small),
        task("hole", seeds=(2,), image=True, mask=box_mask(), strength=0.8, **both),
        task("canny", seeds=(3,), nets=[Net("canny", 0.7)], guidance_scale=3.0, **both),
        task("sees", seeds=(4,), sees=(checkpoint, 1, 0.6), **small),
        task("told nothing", seeds=(4,), sees=(checkpoint, 1, 0.6)),
    ]
    made = make_together(engine_for(checkpoint), tasks)
    assert_all_same(made, tasks, Pipelines(checkpoint))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_plus_adapter_sees_hidden_states(
    family: FamilyName, demo_models: Path, engine_for: MakeFor
) -> None:
    checkpoint = Checkpoint(demo_models, family, family, PLUS_ADAPTERS[family])
    tasks = [
        task("one picture", seeds=(1,), sees=(checkpoint, 1, 0.6)),
        task("two pictures", seeds=(2,), num_inference_steps=6, sees=(checkpoint, 2, 0.4)),
        task("guided", seeds=(3,), guidance_scale=3.0, sees=(checkpoint, 1, 0.6)),
        task("none", seeds=(4,), num_inference_steps=5),
        task("canny", seeds=(5,), sees=(checkpoint, 1, 0.5), nets=[Net("canny")]),
    ]
    made = make_together(engine_for(checkpoint), tasks)
    assert_all_same(made, tasks, Pipelines(checkpoint))


@pytest.mark.parametrize("family", ["sd15", pytest.param("sdxl", marks=pytest.mark.deep)])
def test_every_field_changes_the_image(
    family: FamilyName, demo_models: Path, engine_for: MakeFor
) -> None:
    """Else the comparisons above would pass for an engine that drops one."""
    checkpoint = Checkpoint(demo_models, family, family, ADAPTERS[family])
    start: dict[str, object] = {"image": True, "strength": 0.75}
    hole = {**start, "mask": box_mask()}
    variants: dict[str, dict[str, object]] = {
        "plain": {},
        "depth": {"nets": [Net("depth")]},
        "depth at 1": {"nets": [Net("depth", 1.0)]},
        "depth, first half": {"nets": [Net("depth", 0.5, 0.0, 0.5)]},
        "depth, second half": {"nets": [Net("depth", 0.5, 0.5, 1.0)]},
        "canny": {"nets": [Net("canny")]},
        "both": {"nets": [Net("depth"), Net("canny")]},
        "one picture": {"sees": (checkpoint, 1, 0.5)},
        "one picture at 1": {"sees": (checkpoint, 1, 1.0)},
        "two pictures": {"sees": (checkpoint, 2, 0.5)},
        "picture and canny": {"sees": (checkpoint, 1, 0.5), "nets": [Net("canny")]},
        "image": start,
        "image at 0.5": {**start, "strength": 0.5},
        "image and canny": {**start, "nets": [Net("canny")]},
        "hole": hole,
        "hole at 0.5": {**hole, "strength": 0.5},
        "other hole": {**start, "mask": box_mask(left=0.1)},
        "hole and picture": {**hole, "sees": (checkpoint, 1, 0.5)},
    }
    tasks = [task(name, **fields) for name, fields in variants.items()]  # type: ignore[arg-type]
    made = make_all(engine_for(checkpoint), tasks)
    for one, other in combinations(variants, 2):
        apart = distance(made[one, 0].latents, made[other, 0].latents)
        assert apart > CLEARLY_DIFFERENT, f"{one!r} and {other!r} look alike"


@pytest.mark.parametrize(
    ("folder", "strength", "pictures"),
    [("sd15", 0.5, 1), ("sd15", 1.0, 1), ("sd15-inpainting", 0.5, 2), ("sd15-inpainting", 1.0, 1)],
)
def test_the_vae_encodes_no_more_than_a_unet_needs(
    demo_models: Path,
    engine_for: MakeFor,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    strength: float,
    pictures: int,
) -> None:
    engine = engine_for(Checkpoint(demo_models, "sd15", folder, ADAPTERS["sd15"]))
    vae, encoded = engine.components.vae, 0
    posterior = vae.posterior

    def counted(pixels: Tensor) -> Posterior:
        nonlocal encoded
        encoded += 1
        return posterior(pixels)

    monkeypatch.setattr(vae, "posterior", counted)
    make_all(engine, [task("a", image=True, mask=box_mask(), strength=strength, seeds=(1, 2))])
    assert encoded == pictures


def test_what_an_engine_refuses(demo_models: Path, engine_for: MakeFor) -> None:
    checkpoint = Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"])
    engine = engine_for(checkpoint)
    bare = engine_for(replace(checkpoint, adapter=None))
    only_inpaints = engine_for(replace(checkpoint, folder="sd15-inpainting", adapter=None))
    good = task(
        "good",
        image=True,
        mask=box_mask(),
        strength=0.9,
        nets=[Net("depth"), Net("canny")],
        sees=(checkpoint, 1, 0.5),
    )
    depth, canny = good.job.controls

    def changed(asset: int, to: object) -> Task:
        assets = list(good.assets)
        assets[asset] = to  # type: ignore[call-overload]
        return replace(good, assets=tuple(assets))

    def with_job(**fields: Any) -> Task:
        return replace(good, job=replace(good.job, **fields))

    image, mask, embeds = good.assets[3], good.assets[4], good.assets[2]
    hidden = np.zeros((2, 257, 1280), np.float32)
    cases: list[tuple[Engine, Task, str, str]] = [
        (engine, with_job(image=None), "mask", "needs an image"),
        (engine, with_job(image=None, mask=None), "strength", "needs an image"),
        (engine, with_job(strength=0.1), "strength", "at least 0.25"),
        (engine, changed(3, image[:-8]), "image", f"{(HEIGHT, WIDTH, 3)} uint8 is needed"),
        (engine, changed(3, image.astype(np.float32)), "image", "uint8 is needed"),
        (engine, changed(4, mask[:, :-8]), "mask", f"{(HEIGHT, WIDTH)} uint8 is needed"),
        (engine, changed(0, mask), "controls", f"{(HEIGHT, WIDTH, 3)} uint8 is needed"),
        (engine, with_job(controls=(replace(depth, type="pose"),)), "controls", "canny, depth"),
        (engine, with_job(controls=(depth, depth)), "controls", "twice"),
        (engine, with_job(controls=(replace(canny, start=0.5, end=0.5),)), "controls", "before"),
        (engine, with_job(controls=(replace(canny, start=0.6, end=0.5),)), "controls", "before"),
        (
            engine,
            with_job(controls=(depth, replace(canny, start=0.1, end=0.3))),
            "controls",
            "'canny': none of the 3 steps lies within 0.1 to 0.3",
        ),
        (engine, changed(2, embeds[:1]), "ip_adapter", "(2, 32)"),
        (engine, changed(2, embeds[:, :-1]), "ip_adapter", "(2, 32)"),
        (engine, changed(2, hidden), "ip_adapter", "(2, 32)"),
        (bare, good, "ip_adapter", "no IP-Adapter"),
        (only_inpaints, task("no picture"), "image", "only inpaints"),
        (only_inpaints, task("no mask", image=True, strength=0.9), "mask", "only inpaints"),
    ]
    for asked, bad, param, says in cases:
        with pytest.raises(InvalidRequest) as caught:
            asked.submit(bad.job, lambda _: None, bad.assets)
        assert caught.value.param == param
        assert says in caught.value.message
    assert engine.figures().pending_images == 0
    assert make_all(engine, [good])


def test_what_a_plus_adapter_refuses(demo_models: Path, engine_for: MakeFor) -> None:
    checkpoint = Checkpoint(demo_models, "sd15", "sd15", PLUS_ADAPTERS["sd15"])
    engine = engine_for(checkpoint)
    good = task("good", sees=(checkpoint, 1, 0.5))
    for wrong in (np.zeros((2, 32), np.float32), good.assets[0][..., :-1], good.assets[0][:1]):
        with pytest.raises(InvalidRequest) as caught:
            engine.submit(good.job, lambda _: None, (wrong,))
        assert caught.value.param == "ip_adapter"
        assert "(2, tokens, 48)" in caught.value.message
    assert make_all(engine, [good])


def test_what_a_refused_strength_is_told_would_do(demo_models: Path) -> None:
    checkpoint = Checkpoint(demo_models, "sd15", "sd15")
    parts = load(checkpoint.args())
    tokenize = Tokenizers(parts.tokenizers).tokenize
    admission = Admission(parts.capabilities, tokenize, LoraSources(), ModelUserConfig())
    refused = 0
    for steps, strength in product(range(1, 51), (0.001, 0.02, 0.1, 0.33, 0.5, 0.99)):
        asked = task("asked", image=True, strength=strength, num_inference_steps=steps)
        if int(steps * strength) >= 1:
            admission.admit(asked.job, asked.assets)
            continue
        with pytest.raises(InvalidRequest, match="leaves no step") as caught:
            admission.admit(asked.job, asked.assets)
        refused += 1
        assert caught.value.param == "strength"
        told = dict(re.findall(r"(\w+) must be at least ([\d.]+)", caught.value.message))
        assert told or "both must be higher" in caught.value.message
        if "strength" in told:
            assert float(told["strength"]) < 1
            assert int(steps * float(told["strength"])) == 1
        if "num_inference_steps" in told:
            assert int(told["num_inference_steps"]) <= 50
            assert int(int(told["num_inference_steps"]) * strength) == 1
    assert refused > 50
