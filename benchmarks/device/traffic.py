"""Traffic of many kinds in one batch, against traffic of one kind."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from benchmarks.device.crowd import Crowd
from benchmarks.device.images import IN_FLIGHT
from benchmarks.device.lab import Lab
from benchmarks.device.record import Row, number
from benchmarks.device.timetable import Rows
from configs.families import FamilyName
from deployments.contracts.jobs import ImageJob

FEWEST, MOST = 2, 16  # steps
MEAN = (FEWEST + MOST) // 2
GUIDANCE = 5.0


@dataclass(frozen=True)
class TrafficRow(Row):
    """`of_uniform`: UNet rows a second, as a share of those of uniform traffic."""

    HEADER: ClassVar = ("model", "traffic", "UNet rows/s", "rows a call", "images/s", "of uniform")
    model: FamilyName
    traffic: str
    rows_s: float
    rows_a_call: float
    images_s: float
    of_uniform: float

    def cells(self) -> tuple[str, ...]:
        return (
            self.model,
            self.traffic,
            number(self.rows_s),
            number(self.rows_a_call),
            number(self.images_s, 2),
            number(self.of_uniform, 2),
        )


def traffic(lab: Lab, family: FamilyName) -> Rows:
    """The same number of requests in flight, first all alike, then ever less so."""
    engine = lab.engine(family)
    lab.write_adapters(family)
    for style in lab.styles:
        engine.generate(lab.job(family, 1, styles=(style,)))
    kinds: dict[str, Iterator[ImageJob]] = {
        f"{MEAN} steps": (lab.job(family, MEAN) for _ in count()),
        f"{FEWEST} to {MOST} steps, a third guided": mixed(lab, family, ()),
        f"the same, half with one of {len(lab.styles)} adapters": mixed(lab, family, lab.styles),
    }
    uniform: float | None = None
    for kind, jobs in kinds.items():
        with Crowd(engine, jobs, IN_FLIGHT) as crowd:
            crowd.settle()
            flow = crowd.flow(lab.effort.window_s)
        uniform = uniform or flow.rows_s
        yield TrafficRow(
            model=family,
            traffic=kind,
            rows_s=flow.rows_s,
            rows_a_call=flow.rows_a_call,
            images_s=flow.images_s,
            of_uniform=flow.rows_s / uniform,
        )


def mixed(lab: Lab, family: FamilyName, styles: tuple[str, ...]) -> Iterator[ImageJob]:
    """Every number of steps equally often, each third guided, every second with an adapter."""
    kinds = MOST - FEWEST + 1
    for i in count():
        yield lab.job(
            family,
            FEWEST + 7 * i % kinds,
            guidance=GUIDANCE if i % 3 == 0 else 0.0,
            styles=(styles[i // 2 % len(styles)],) if styles and i % 2 == 0 else (),
        )
