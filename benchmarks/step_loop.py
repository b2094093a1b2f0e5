"""The engine's step loop against a bare loop of UNet calls at the same batch size.

Steps and bare calls take turns on the engine's thread: an event of a job is told on that
thread between two steps, and its listener makes the bare call there. So whatever else the
machine does meanwhile slows both alike, and every step is compared with the call next to it.
"""

import queue
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter, thread_time
from typing import NamedTuple

import torch

from benchmarks.bare import BarePipeline, unet_inputs
from benchmarks.models import SIDE, STYLES
from benchmarks.report import ratios
from deployments.contracts.jobs import FailedImage, ImageJob, JobEvent, LoraWeight, Progress
from deployments.diffusion.engine.engine import Engine

SETTLED = 3  # steps after which every row has joined; as many at the end are left out


class Clock(NamedTuple):
    """Seconds on the wall, and seconds of CPU time of the engine's thread."""

    wall: float
    cpu: float

    @staticmethod
    def now() -> "Clock":
        """To be read on the engine's thread."""
        return Clock(perf_counter(), thread_time())

    def since(self, start: "Clock") -> "Clock":
        """The time from `start` to this."""
        return Clock(self.wall - start.wall, self.cpu - start.cpu)


@dataclass
class Turns:
    """The engine's steps, and the bare calls that took turns with them.

    Attributes:
        end_to_end_s: per run, from the first submission, encoding the prompts, to the last
            decoded image, the bare calls left out; divided by the number of steps.
    """

    steps: list[Clock] = field(default_factory=list)
    calls: list[Clock] = field(default_factory=list)
    end_to_end_s: list[float] = field(default_factory=list)

    @property
    def call_s(self) -> float:
        """A bare call."""
        return median(call.wall for call in self.calls)

    @property
    def step_s(self) -> float:
        """A step of the engine."""
        return median(step.wall for step in self.steps)

    @property
    def ratios(self) -> list[float]:
        """The engine's rows per second, of those of the bare call beside each step."""
        return ratios([call.wall for call in self.calls], [step.wall for step in self.steps])

    @property
    def cpu_ratios(self) -> list[float]:
        """The same per second of CPU time."""
        return ratios([call.cpu for call in self.calls], [step.cpu for step in self.steps])

    @property
    def end_to_end(self) -> float:
        """The same with everything that a request needs beside its steps."""
        return self.call_s / median(self.end_to_end_s)


def step_jobs(rows: int, steps: int, *, styles: bool) -> list[ImageJob]:
    """One image a job. With `styles`, the first uses all adapters and each other just one of
    them, all with weights of their own."""
    jobs = [ImageJob(f"row-{i}", f"a red fox {i}", (i,), SIDE, SIDE) for i in range(rows)]
    jobs = [replace(job, num_inference_steps=steps) for job in jobs]
    if not styles:
        return jobs
    mixes = [tuple(LoraWeight(name, 0.5 + 0.1 * i) for i, name in enumerate(STYLES))]
    mixes += [(LoraWeight(STYLES[i % len(STYLES)], 0.2 + 0.1 * i),) for i in range(1, rows)]
    return [replace(job, loras=mix) for job, mix in zip(jobs, mixes, strict=True)]


def take_turns(
    engine: Engine, pipeline: BarePipeline, jobs: Sequence[ImageJob], turns: Turns
) -> None:
    """Runs jobs, all of the same step count, with a bare call of as many rows after each step,
    and adds what it measured to `turns`.

    Raises `RuntimeError` if a row joined or left while steps were measured.
    """
    unet, inputs = pipeline.unet, unet_inputs(pipeline, len(jobs), SIDE)
    steps = jobs[0].num_inference_steps
    last_measured = steps - SETTLED
    answers: queue.SimpleQueue[JobEvent] = queue.SimpleQueue()
    counted: list[tuple[int, int]] = []
    paused_s = 0.0
    resumed = Clock(0.0, 0.0)

    def listen(event: JobEvent) -> None:
        nonlocal paused_s, resumed
        if not isinstance(event, Progress):
            answers.put(event)
            return
        step = Clock.now().since(resumed)
        figures = engine.figures()
        counted.append((figures.steps_total, figures.rows_total))
        started = Clock.now()
        with torch.inference_mode():
            unet(*inputs[:2], encoder_hidden_states=inputs[2], return_dict=False)
        call = Clock.now().since(started)
        if SETTLED < event.step <= last_measured:
            turns.steps.append(step)
            turns.calls.append(call)
        paused_s += call.wall
        resumed = Clock.now()

    def wait_only(event: JobEvent) -> None:
        if not isinstance(event, Progress):
            answers.put(event)

    started = perf_counter()
    for job in jobs:
        engine.submit(job, listen if job is jobs[-1] else wait_only)
    for _ in jobs:
        answer = answers.get()
        if isinstance(answer, FailedImage):
            raise answer.error
    turns.end_to_end_s.append((perf_counter() - started - paused_s) / steps)
    first, second = counted[SETTLED - 1], counted[last_measured - 1]
    if second[1] - first[1] != len(jobs) * (second[0] - first[0]):
        raise RuntimeError("a row joined or left while the engine was measured")
