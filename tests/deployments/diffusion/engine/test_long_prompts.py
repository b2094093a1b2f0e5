"""Prompts of several windows: rows of all lengths share a call, and nobody's image changes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import TCDScheduler
from torch import Tensor

from configs.app import Limits, ModelUserConfig
from configs.families import FamilyName
from deployments.contracts.jobs import ImageJob
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from tests.conftest import MakeEngine, demo_loras
from tests.deployments.diffusion.engine.conftest import Oracles
from tests.deployments.diffusion.engine.harness import Gate, image_job, styles
from tests.deployments.diffusion.engine.oracle import (
    LATENT_TOLERANCE,
    PIXEL_TOLERANCE,
    Oracle,
    distance,
    levels_apart,
)
from tests.deployments.diffusion.engine.prompts.by_compel import by_compel
from tests.deployments.diffusion.engine.tasks import (
    ADAPTERS,
    Checkpoint,
    Net,
    box_mask,
    make_all,
    task,
)

ROOMY = Limits(max_batch=64, max_running=64, max_step_ms=float("inf"))
WORDS = "a red fox in the snow by the lake at night, stars, a small house, "
ONE, TWO, FIVE = WORDS, WORDS * 6, WORDS * 17


@pytest.fixture
def engine(demo_models: Path) -> Iterator[Engine]:
    torch.set_num_threads(1)
    checkpoint = Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"])
    config = ModelUserConfig(loras=demo_loras(demo_models, "sd15"), limits=ROOMY)
    made = Engine(load(checkpoint.args()), config)
    yield made
    made.stop()


def windows(engine: Engine, text: str) -> int:
    return len(engine._admission._tokenize(text, "prompt", "plain").ids[0])


def test_rows_of_different_lengths_in_one_call(engine: Engine, demo_models: Path) -> None:
    assert [windows(engine, text) for text in (ONE, TWO, FIVE)] == [1, 2, 5]
    checkpoint = Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"])
    nets = [Net("depth"), Net("canny", 0.8)]
    tasks = [
        task("one", prompt=ONE, seeds=(1,)),
        task("two", prompt=TWO, seeds=(2,)),
        task("five", prompt=FIVE, seeds=(3,)),
        task("guided", prompt=TWO, negative_prompt="blurry", guidance_scale=4.0, seeds=(4,)),
        task("guided long", prompt=ONE, negative_prompt=FIVE, guidance_scale=4.0, seeds=(5,)),
        task("styled", prompt=FIVE, loras=styles(ink=1.0, neon=0.4), seeds=(6,)),
        task("controlled", prompt=FIVE, nets=nets, seeds=(7,)),
        task("controlled, short", prompt=ONE, nets=nets, guidance_scale=3.0, seeds=(8,)),
        task("sees", prompt=TWO, sees=(checkpoint, 1, 0.6), seeds=(9,)),
        task("sees, guided", prompt=ONE, sees=(checkpoint, 2, 0.6), guidance_scale=3, seeds=(10,)),
        task("inpaints", prompt=FIVE, image=True, mask=box_mask(), strength=0.9, seeds=(11,)),
        task("weighted", prompt=f"(({TWO}))", prompt_syntax="weighted", seeds=(12,)),
        task("skips", prompt=TWO, clip_skip=1, seeds=(13,)),
    ]
    alone = {one.job.job_id: make_all(engine, [one])[one.job.job_id, 0] for one in tasks}
    with Gate(engine) as gate:
        first = task("at the gate", prompt=ONE)
        engine.submit(first.job, lambda _: None, first.assets)
        gate.wait()
        together = make_all(engine, tasks, submitted=gate.open)
    rows = 1 + len(tasks) + sum(one.job.guidance_scale > 1 for one in tasks)
    assert rows in {len(call) for call in gate.calls}, "they never shared a call"
    for name, image in alone.items():
        found = together[name, 0]
        apart = distance(found.latents, image.latents)
        assert apart <= LATENT_TOLERANCE, f"{name}: {apart:.1e}"
        assert levels_apart(found.pixels, image.pixels) <= PIXEL_TOLERANCE, name
    plain = task("plain", prompt=TWO, seeds=(13,))
    skipped, unskipped = alone["skips"], make_all(engine, [plain])["plain", 0]
    assert distance(skipped.latents, unskipped.latents) > 1e-2, "clip_skip changes nothing"


def embeds(oracle: Oracle, text: str) -> tuple[Tensor, Tensor | None]:
    """By compel, of the oracle's own text encoders."""
    pipe = oracle._pipe
    tokenizers, encoders = [pipe.tokenizer], [pipe.text_encoder]
    pooled = None
    with torch.inference_mode():
        if hasattr(pipe, "text_encoder_2"):
            tokenizer, encoder = pipe.tokenizer_2, pipe.text_encoder_2
            tokenizers.append(tokenizer)
            encoders.append(encoder)
            ids = tokenizer(text).input_ids[1:76]
            window = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
            pooled = encoder(torch.tensor([window]))[0]
        return by_compel(tokenizers, encoders, [text], [1.0]), pooled


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_it_is_what_diffusers_makes_of_the_windows(
    family: FamilyName, make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine, oracle = make_engine(family), oracle_of(family)
    job = image_job(prompt=FIVE, negative_prompt=f"dark, {FIVE}", guidance_scale=4.0, seeds=(5,))
    plain = replace(job, negative_prompt=None, guidance_scale=0.0)
    for one in (job, plain):
        assert_as_judged(one, engine, oracle)


def assert_as_judged(job: ImageJob, engine: Engine, oracle: Oracle) -> None:
    (found,) = engine.generate(job)
    oracle._weigh(job)  # without the adapters of those who asked it before
    pipe = oracle._pipe
    cond, pooled = embeds(oracle, job.prompt)
    more: dict[str, Tensor | None] = {"prompt_embeds": cond}
    if pooled is not None:
        more["pooled_prompt_embeds"] = pooled
    if job.negative_prompt is not None:
        uncond, pooled = embeds(oracle, job.negative_prompt)
        more["negative_prompt_embeds"] = uncond
        if pooled is not None:
            more["negative_pooled_prompt_embeds"] = pooled
    generator = torch.Generator().manual_seed(job.seeds[0])
    assert isinstance(pipe.scheduler, TCDScheduler)
    image = pipe(
        height=job.height,
        width=job.width,
        num_inference_steps=job.num_inference_steps,
        eta=job.eta,
        guidance_scale=job.guidance_scale,
        generator=generator,
        **more,
    ).images[0]
    assert levels_apart(found.pixels, np.asarray(image)) <= PIXEL_TOLERANCE


def test_the_usage_counts_every_window(make_engine: MakeEngine) -> None:
    engine = make_engine()
    job = image_job(prompt=FIVE, num_inference_steps=1)
    tokens = engine.submit(job, lambda _: None)
    assert 4 * 75 < tokens <= 5 * 75
