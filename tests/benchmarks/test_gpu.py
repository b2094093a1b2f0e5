"""The GPU benchmark: its timetable and record, its traffic, and a quick run on the CPU."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from benchmarks.device import adapters, timetable, traffic
from benchmarks.device.lab import Lab
from benchmarks.device.record import Record, Row
from benchmarks.device.timetable import Memory, Rows, Section
from benchmarks.device.timing import QUICK

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Tick(Row):
    HEADER: ClassVar = ("tick", "of")
    count: int
    of: str

    def cells(self) -> tuple[str, ...]:
        return str(self.count), self.of


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def ticks(self, name: str, *seconds: float) -> Section:
        """A section with a row for each of these durations, with a claim on ten seconds."""

        def rows() -> Rows:
            for count, duration in enumerate(seconds):
                self.now += duration
                yield Tick(count, name)

        return Section(name, name, 10, rows)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "out" / "bench.json"


def counted(record: Record) -> dict[str, int]:
    return {chapter.title: len(chapter.rows) for chapter in record.chapters}


def test_every_section_runs_while_there_is_time(file: Path) -> None:
    clock, record = Clock(), Record(file, {})
    sections = [clock.ticks("a", 3, 3), clock.ticks("b", 4)]
    timetable.run(sections, record, 20, Memory(), clock)
    assert counted(record) == {"a": 2, "b": 1}
    assert [chapter.seconds for chapter in record.chapters] == [6, 4]
    assert not any(chapter.notes for chapter in record.chapters)


def test_a_section_is_cut_when_its_part_is_over_and_may_use_what_others_left(file: Path) -> None:
    clock, record = Clock(), Record(file, {})
    sections = [clock.ticks("short", 1), clock.ticks("long", 6, 6, 9, 9), clock.ticks("last", 1)]
    timetable.run(sections, record, 30, Memory(), clock)
    assert counted(record) == {"short": 1, "long": 3, "last": 1}
    assert record.chapters[1].notes == ["its time was up after this row"]


def test_a_section_whose_time_was_taken_is_left_out_and_the_next_has_its_own(file: Path) -> None:
    clock, record = Clock(), Record(file, {})
    sections = [clock.ticks("slow", 25), clock.ticks("none left", 1), clock.ticks("last", 1)]
    timetable.run(sections, record, 30, Memory(), clock)
    assert counted(record) == {"slow": 1, "none left": 0, "last": 1}
    assert record.chapters[1].notes == ["left out: the time was up"]


def test_a_section_that_fails_keeps_its_rows_and_the_next_runs(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Rows:
        yield Tick(0, "broken")
        raise ValueError("no kernel for this\nand much more")

    clock, record = Clock(), Record(file, {})
    sections = [Section("broken", "broken", 10, broken), clock.ticks("next", 1)]
    timetable.run(sections, record, 20, Memory(), clock)
    assert counted(record) == {"broken": 1, "next": 1}
    assert record.chapters[0].notes == ["failed: ValueError: no kernel for this"]
    assert "and much more" in capsys.readouterr().err


def test_rows_are_printed_and_saved_as_they_come(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(file, {"card": "a card"})
    record.begin("ticks")
    record.add(Tick(1, "one"))
    record.add(Tick(2, "two"))
    assert json.loads(file.read_text()) == {
        "about": {"card": "a card"},
        "sections": [
            {
                "title": "ticks",
                "rows": [{"count": 1, "of": "one"}, {"count": 2, "of": "two"}],
                "notes": [],
                "seconds": None,
                "peak_bytes": None,
            }
        ],
    }
    record.note("something was left out")
    record.end(1.25, 3 * 2**30)
    assert json.loads(file.read_text())["sections"][0]["peak_bytes"] == 3 * 2**30
    assert capsys.readouterr().out.splitlines() == [
        "- card: a card",
        "",
        "### ticks",
        "",
        "| tick | of |",
        "|---|---|",
        "| 1 | one |",
        "| 2 | two |",
        "",
        "- something was left out",
        "- 1.2 s; at most 3.0 GiB on the device",
        "",
    ]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(torch.device("cpu"), "float32", QUICK, tmp_path, tiny=True)
    yield lab
    lab.close()


def test_mixed_traffic_is_what_it_says(lab: Lab) -> None:
    styles = tuple(f"style-{i}" for i in range(16))
    jobs = list(islice(traffic.mixed(lab, "sd15", styles), 16 * 15 * 6))
    steps = Counter(job.num_inference_steps for job in jobs)
    assert sorted(steps) == list(range(2, 17))
    assert len(set(steps.values())) == 1
    assert sum(job.guidance_scale > 1 for job in jobs) * 3 == len(jobs)
    used = Counter(lora.name for job in jobs for lora in job.loras)
    assert sorted(used) == sorted(styles)
    assert sum(used.values()) * 2 == len(jobs)
    assert len({job.job_id for job in jobs}) == len({job.prompt for job in jobs}) == len(jobs)


def test_percentiles_lie_between_neighbours() -> None:
    assert adapters.percentile([4.0], 95) == 4.0
    assert adapters.percentile([float(i) for i in range(101)], 95) == 95.0
    assert adapters.percentile([3.0, 1.0, 2.0], 50) == 2.0


QUICK_RUN = """
import sys
from benchmarks.gpu import main
sys.argv = ["gpu", "--device", "cpu", "--quick", "--minutes", "9", "--out", sys.argv[1]]
main()
assert "ray" not in sys.modules
"""


@pytest.mark.deep
@pytest.mark.timeout(600)
def test_the_quick_run_measures_everything_on_a_cpu_and_needs_no_ray(file: Path) -> None:
    subprocess.run([sys.executable, "-c", QUICK_RUN, str(file)], check=True, cwd=ROOT)
    sections = json.loads(file.read_text())["sections"]
    assert len(sections) >= 21
    for section in sections:
        assert section["rows"], section
        assert not any(note.startswith("failed") for note in section["notes"]), section
