"""Style adapters: what they cost in use, and what loading them costs those who use none."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import ClassVar

from benchmarks.device.crowd import Crowd
from benchmarks.device.images import STEPS
from benchmarks.device.lab import BATCH, Lab
from benchmarks.device.record import Row, number
from benchmarks.device.steady import WARM_UP_STEPS, steady
from benchmarks.device.timetable import Rows
from configs.families import FamilyName
from deployments.contracts.jobs import ImageJob

PLAIN_CALLERS = 4


@dataclass(frozen=True)
class UseRow(Row):
    """Steps of a full batch. `of_none`: a step's time against one without any adapter."""

    HEADER: ClassVar = ("model", "adapters", "batch", "ms a step", "rows/s", "times none")
    model: FamilyName
    adapters: str
    batch: int
    ms: float
    rows_s: float
    of_none: float

    def cells(self) -> tuple[str, ...]:
        return (
            self.model,
            self.adapters,
            str(self.batch),
            number(self.ms, 2),
            number(self.rows_s),
            number(self.of_none, 2),
        )


@dataclass(frozen=True)
class ColdRow(Row):
    """Plain requests beside one caller whose every request names an adapter.

    Attributes:
        plain: requests answered, with the median and the 95th percentile of their time.
        of_warm: that percentile, against the one beside a warm adapter.
        styled_ms: median time of the requests with an adapter.
        load_ms: by how much it is longer than that beside a warm adapter.
    """

    HEADER: ClassVar = (
        "model", "beside", "plain requests", "p50, ms", "p95, ms", "p95 of warm's",
        "requests with it", "their p50, ms", "of it loading, ms",
    )  # fmt: skip
    model: FamilyName
    beside: str
    plain: int
    p50_ms: float
    p95_ms: float
    of_warm: float
    styled: int
    styled_ms: float
    load_ms: float

    def cells(self) -> tuple[str, ...]:
        return (
            self.model,
            self.beside,
            str(self.plain),
            number(self.p50_ms),
            number(self.p95_ms),
            number(self.of_warm, 2),
            str(self.styled),
            number(self.styled_ms),
            number(self.load_ms),
        )


@dataclass(frozen=True)
class LoadRow(Row):
    """`ms`: of one adapter."""

    HEADER: ClassVar = ("model", "loads on the idle engine", "ms an adapter")
    model: FamilyName
    what: str
    ms: float

    def cells(self) -> tuple[str, ...]:
        return self.model, self.what, number(self.ms)


def loading(lab: Lab, family: FamilyName) -> Rows:
    """All adapters that later sections use, the first alone, the others asked for at once."""
    engine = lab.engine(family)
    lab.write_adapters(family)

    def seconds(styles: Sequence[str]) -> float:
        jobs = [lab.job(family, 1, styles=(style,)) for style in styles]
        started = perf_counter()
        with ThreadPoolExecutor(len(jobs)) as callers:
            list(callers.map(engine.generate, jobs))
        return perf_counter() - started

    first, *others = lab.styles
    engine.generate(lab.job(family, 1))
    cold, warm = seconds([first]), seconds([first])
    yield LoadRow(family, "one", (cold - warm) * 1e3)
    cold, warm = seconds(others), seconds(others)
    yield LoadRow(family, f"{len(others)} at once", (cold - warm) / len(others) * 1e3)


def use(lab: Lab, family: FamilyName) -> Rows:
    """Steps of one batch, from no adapter to all of them in use."""
    engine = lab.engine(family)
    lab.write_adapters(family)
    styles = lab.styles
    starts = range(0, 2 * BATCH, 2)
    pairs: list[tuple[str, ...]] = [
        (styles[i % len(styles)], styles[(i + 1) % len(styles)]) for i in starts
    ]
    kinds: list[tuple[str, int, list[tuple[str, ...]]]] = []
    for batch in (1, BATCH):
        kinds.append(("none in use", batch, [()] * batch))
        kinds.append(("one in use", batch, [styles[:1]] * batch))
        kinds.append(("three in use", batch, [styles[:3]] * batch))
    kinds.append((f"{min(len(styles), 2 * BATCH)} in use, two a row", BATCH, pairs))
    none: dict[int, float] = {}
    for name, batch, rows in kinds:
        for count in (WARM_UP_STEPS, lab.effort.steps):
            seconds = steady(engine, [lab.job(family, count, styles=row) for row in rows])
        none.setdefault(batch, seconds)
        yield UseRow(
            model=family,
            adapters=name,
            batch=batch,
            ms=seconds * 1e3,
            rows_s=batch / seconds,
            of_none=seconds / none[batch],
        )


def cold(lab: Lab, family: FamilyName) -> Rows:
    """Plain requests while adapters load that nobody asked for before, one after the other."""
    engine = lab.engine(family)
    lab.write_adapters(family)
    warm = lab.styles[0]
    engine.generate(lab.job(family, 1, styles=(warm,)))
    base: tuple[float, float] | None = None
    for beside, styles in (
        ("a warm adapter", (warm,) * 2 * len(lab.cold_styles)),
        ("cold adapters", lab.cold_styles),
    ):
        plain_jobs = _plain(lab, family)
        styled_jobs = iter([lab.job(family, STEPS, styles=(style,)) for style in styles])
        with Crowd(engine, plain_jobs, PLAIN_CALLERS) as plain:
            plain.settle()
            started = perf_counter()
            with Crowd(engine, styled_jobs, 1) as styled:
                styled.wait()
            ended = perf_counter()
        times = [a.seconds for a in plain.answered if a.ended > started and a.started < ended]
        p95, styled_s = percentile(times, 95), median(a.seconds for a in styled.answered)
        base = base or (p95, styled_s)
        yield ColdRow(
            model=family,
            beside=beside,
            plain=len(times),
            p50_ms=median(times) * 1e3,
            p95_ms=p95 * 1e3,
            of_warm=p95 / base[0],
            styled=len(styled.answered),
            styled_ms=styled_s * 1e3,
            load_ms=(styled_s - base[1]) * 1e3,
        )


def percentile(values: Sequence[float], percent: int) -> float:
    """Of a sample, between its neighbours; of a single value, that."""
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _plain(lab: Lab, family: FamilyName) -> Iterator[ImageJob]:
    while True:
        yield lab.job(family, STEPS)
