"""Whole images: one alone, and as many as the engine can make."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import ClassVar

from benchmarks.device.crowd import Crowd
from benchmarks.device.lab import BATCH, Lab
from benchmarks.device.record import Row, number
from benchmarks.device.timetable import Rows
from configs.app import CompileMode
from configs.families import FamilyName
from deployments.contracts.jobs import ImageJob

STEPS = 4
IN_FLIGHT = 2 * BATCH


@dataclass(frozen=True)
class ImageRow(Row):
    """Images of `STEPS` steps, from the request to the pixels, every prompt a new one.

    Attributes:
        latency_ms: median.
        unet_ms: of one alone: its steps, by the difference to images of one step.
        rest_ms: the rest of it: prompt, VAE, copies and threads.
        of_bare: UNet rows a second, as a share of the bare UNet's at the largest batch.
    """

    HEADER: ClassVar = (
        "model", "what", "latency, ms", "its UNet, ms", "its rest, ms",
        "images/s", "UNet rows/s", "rows a call", "of bare",
    )  # fmt: skip
    model: FamilyName
    what: str
    latency_ms: float
    unet_ms: float | None
    rest_ms: float | None
    images_s: float
    rows_s: float
    rows_a_call: float
    of_bare: float | None

    def cells(self) -> tuple[str, ...]:
        return (
            self.model,
            self.what,
            number(self.latency_ms),
            number(self.unet_ms),
            number(self.rest_ms),
            number(self.images_s, 2),
            number(self.rows_s),
            number(self.rows_a_call),
            number(self.of_bare, 2),
        )


def images(lab: Lab, family: FamilyName, mode: CompileMode) -> Rows:
    """One image after the other, then many at once."""
    engine = lab.engine(family, mode)

    def alone(steps: int) -> float:
        seconds: list[float] = []
        for _ in range(lab.effort.images + 1):
            job, started = lab.job(family, steps), perf_counter()
            engine.generate(job)
            seconds.append(perf_counter() - started)
        return median(seconds[1:])

    one, whole = alone(1), alone(STEPS)
    unet = (whole - one) * STEPS / (STEPS - 1)
    yield ImageRow(
        model=family,
        what=f"alone, compile {mode}",
        latency_ms=whole * 1e3,
        unet_ms=unet * 1e3,
        rest_ms=(whole - unet) * 1e3,
        images_s=1 / whole,
        rows_s=STEPS / whole,
        rows_a_call=1,
        of_bare=_of_bare(lab, family, STEPS / whole),
    )
    with Crowd(engine, _jobs(lab, family), IN_FLIGHT) as crowd:
        crowd.settle()
        flow = crowd.flow(lab.effort.window_s)
    yield ImageRow(
        model=family,
        what=f"{IN_FLIGHT} in flight, compile {mode}",
        latency_ms=median(answer.seconds for answer in crowd.answered) * 1e3,
        unet_ms=None,
        rest_ms=None,
        images_s=flow.images_s,
        rows_s=flow.rows_s,
        rows_a_call=flow.rows_a_call,
        of_bare=_of_bare(lab, family, flow.rows_s),
    )


def _jobs(lab: Lab, family: FamilyName) -> Iterator[ImageJob]:
    while True:
        yield lab.job(family, STEPS)


def _of_bare(lab: Lab, family: FamilyName, rows_s: float) -> float | None:
    call_s = lab.yardsticks.call_s.get((family, BATCH))
    return None if call_s is None else rows_s * call_s / BATCH
