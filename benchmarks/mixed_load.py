"""Many different requests, eight at a time, against one pipeline that takes them in turn."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter, process_time

import numpy as np

from benchmarks.bare import BarePipeline
from benchmarks.models import SIDE
from deployments.contracts.jobs import ImageJob, LoraWeight, Pixels
from deployments.diffusion.engine.engine import Engine

AT_A_TIME = 8
REQUESTS = 24
STEPS = (4, 8, 1, 6, 2, 12, 4, 8)
GUIDANCE = (0.0, 0.0, 5.0)
MIXES: tuple[dict[str, float], ...] = (
    {},
    {"papercut": 0.8},
    {"ink": 1.0},
    {"neon": 0.6, "ink": 0.3},
    {},
)


@dataclass
class Rounds:
    """Seconds for all requests, one number a round, and how far apart the images are.

    Attributes:
        engine_cpu_s, pipeline_cpu_s: CPU time of the whole process, decoding included.
        levels: the largest difference at any pixel of any image, of 255.
        rows_a_call: mean batch of the engine's UNet calls.
    """

    engine_s: list[float] = field(default_factory=list)
    pipeline_s: list[float] = field(default_factory=list)
    engine_cpu_s: list[float] = field(default_factory=list)
    pipeline_cpu_s: list[float] = field(default_factory=list)
    levels: int = 0
    rows_a_call: float = 0.0


def mixed_jobs() -> list[ImageJob]:
    """Requests that differ in prompt, seed, steps, guidance and style adapters."""
    jobs: list[ImageJob] = []
    for i in range(REQUESTS):
        guidance = GUIDANCE[i % len(GUIDANCE)]
        mix = MIXES[i % len(MIXES)]
        jobs.append(
            ImageJob(
                job_id=f"mixed-{i}",
                prompt=f"a red fox {i}",
                seeds=(i,),
                width=SIDE,
                height=SIDE,
                negative_prompt="blurry" if guidance else None,
                num_inference_steps=STEPS[i % len(STEPS)],
                guidance_scale=guidance,
                loras=tuple(LoraWeight(name, weight) for name, weight in mix.items()),
            )
        )
    return jobs


def run_rounds(engine: Engine, pipeline: BarePipeline, rounds: int) -> Rounds:
    """Both sides take turns, round by round, after a warm-up that loads the adapters."""
    jobs = mixed_jobs()
    for job in jobs[: len(MIXES)]:
        engine.generate(job)
        pipeline.image(job)
    result = Rounds()
    before = engine.figures()
    for _ in range(rounds):
        started, started_cpu = perf_counter(), process_time()
        ours = _crowd(engine, jobs)
        halfway, halfway_cpu = perf_counter(), process_time()
        theirs = [pipeline.image(job) for job in jobs]
        result.pipeline_s.append(perf_counter() - halfway)
        result.pipeline_cpu_s.append(process_time() - halfway_cpu)
        result.engine_s.append(halfway - started)
        result.engine_cpu_s.append(halfway_cpu - started_cpu)
        result.levels = max(result.levels, *map(_levels_apart, ours, theirs))
    after = engine.figures()
    steps = after.steps_total - before.steps_total
    result.rows_a_call = (after.rows_total - before.rows_total) / steps
    return result


def _crowd(engine: Engine, jobs: Sequence[ImageJob]) -> list[Pixels]:
    """As many callers as `AT_A_TIME`, each with its next request as soon as one is answered."""
    with ThreadPoolExecutor(AT_A_TIME) as callers:
        return [images[0].pixels for images in callers.map(engine.generate, jobs)]


def _levels_apart(ours: Pixels, theirs: Pixels) -> int:
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())
