"""How long a model takes to come: written for this benchmark, loaded as a replica does."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import ClassVar

from benchmarks.device.lab import Lab
from benchmarks.device.record import GIB, Row, number
from benchmarks.device.timetable import Rows
from configs.app import CompileMode
from configs.families import FamilyName


@dataclass(frozen=True)
class SetupRow(Row):
    """`gib`: GiB of safetensors."""

    HEADER: ClassVar = ("model", "what", "s", "GiB")
    model: FamilyName
    what: str
    seconds: float
    gib: float

    def cells(self) -> tuple[str, ...]:
        return self.model, self.what, number(self.seconds), number(self.gib, 2)


def setup(lab: Lab, family: FamilyName) -> Rows:
    """Writes a model and its adapters, and loads the model."""
    started = perf_counter()
    model = list(lab.write_model(family).rglob("*.safetensors"))
    yield SetupRow(family, "written", perf_counter() - started, _gib(model))
    started = perf_counter()
    files = [Path(file) for file in lab.write_adapters(family).values()]
    yield SetupRow(family, f"{len(files)} adapters", perf_counter() - started, _gib(files))
    started = perf_counter()
    lab.engine(family)
    yield SetupRow(family, "loaded into an engine", perf_counter() - started, _gib(model))


def ready(lab: Lab, family: FamilyName, mode: CompileMode) -> Rows:
    """Loads a model, compiles it and warms it up, then again with what was kept on disk."""
    for what in ("first", "again"):
        lab.close()
        started = perf_counter()
        counted = lab.engine(family, mode).figures()
        told = f"ready, compile {mode}, {what}: level {counted.compiled}, "
        told += f"{counted.compiles_total} kinds, {counted.compile_failures_total} failures"
        yield SetupRow(family, told, perf_counter() - started, _gib([]))


def _gib(files: list[Path]) -> float:
    return sum(file.stat().st_size for file in files) / GIB
