"""Sections one after the other, within a time for all."""

import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from time import perf_counter

from benchmarks.device.record import Record, Row

Rows = Generator[Row, None, None]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        name: what `--only` calls it.
        seconds: its share of the time, when all sections run.
        rows: measures; asked for each row when there is time for it.
    """

    name: str
    title: str
    seconds: float
    rows: Callable[[], Rows]


class Memory:
    """Peaks of device memory; of a device that counts none, `None`."""

    def begin(self) -> None:
        """Counts anew."""

    def peak(self) -> int | None:
        """The most bytes since."""
        return None


def run(
    sections: Sequence[Section],
    record: Record,
    total_s: float,
    memory: Memory,
    clock: Clock = perf_counter,
) -> None:
    """Runs the sections, each until its part of `total_s` is over.

    The parts add up: a section may use what those before it left, and gets less where they
    took more. One that fails, or for which no time is left, is noted, and the next has its turn.
    """
    started, due = clock(), 0.0
    whole = sum(section.seconds for section in sections)
    for section in sections:
        due += section.seconds / whole * total_s
        record.begin(section.title)
        began = clock()
        memory.begin()
        if began - started < due:
            _measure(section, record, clock, started + due)
        else:
            record.note("left out: the time was up")
        record.end(clock() - began, memory.peak())


def _measure(section: Section, record: Record, clock: Clock, until: float) -> None:
    rows = section.rows()
    try:
        for row in rows:
            record.add(row)
            if clock() >= until:
                record.note("its time was up after this row")
                break
    except Exception as error:  # the sections that follow have their turn
        traceback.print_exc()
        first_line = str(error).partition("\n")[0]
        record.note(f"failed: {type(error).__name__}: {first_line[:300]}")
    finally:
        rows.close()
