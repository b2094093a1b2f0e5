"""The steady state of the engine's step loop: nothing but steps, all with the same rows."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter, sleep
from typing import NamedTuple

from deployments.contracts.jobs import FinishedImage, ImageJob
from deployments.diffusion.engine.engine import Engine

SETTLED = 3  # steps after which every row has joined; as many at the end are left out
WARM_UP_STEPS = 20  # of a run before the one that counts
LOOK_S = 0.01  # rarely: every look takes the interpreter from the steps


class _Mark(NamedTuple):
    seconds: float
    steps: int
    rows: int


def steady(engine: Engine, jobs: Sequence[ImageJob]) -> float:
    """Seconds of a step of the idle `engine` with all `jobs`, one image of as many steps each.

    The clock runs between two steps, so that work queued on a device counts when it is done.
    Raises `RuntimeError` if a row joined or left meanwhile, or all were there too late.
    """
    before = engine.figures().steps_total
    with ThreadPoolExecutor(len(jobs)) as callers:
        answers = [callers.submit(engine.generate, job) for job in jobs]
        _all_joined(engine, len(jobs), answers)
        first = _when(engine, engine.figures().steps_total + SETTLED, answers)
        last = _when(engine, before + jobs[0].num_inference_steps - SETTLED, answers)
    for answer in answers:
        answer.result()
    steps = last.steps - first.steps
    if steps == 0 or last.rows - first.rows != len(jobs) * steps:
        raise RuntimeError("the rows took too few steps together")
    return (last.seconds - first.seconds) / steps


def _all_joined(engine: Engine, rows: int, answers: Sequence[Future[list[FinishedImage]]]) -> None:
    """Returns after a step that all rows took."""
    last = engine.figures()
    while True:
        now = _when(engine, last.steps_total + 1, answers)
        if now.rows - last.rows_total == rows * (now.steps - last.steps_total):
            return
        last = engine.figures()


def _when(engine: Engine, steps: int, answers: Sequence[Future[list[FinishedImage]]]) -> _Mark:
    """The moment at which the engine has taken so many steps."""
    while (figures := engine.figures()).steps_total < steps:
        for answer in answers:
            if answer.done():
                answer.result()  # raises what the job failed with
        sleep(LOOK_S)
    return _Mark(perf_counter(), figures.steps_total, figures.rows_total)
