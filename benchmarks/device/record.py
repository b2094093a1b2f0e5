"""What was measured so far: a JSON file and markdown tables, both complete at any moment."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

GIB = 2**30


@dataclass(frozen=True)
class Row(ABC):
    """One measurement; its fields are what the JSON says of it.

    Attributes:
        HEADER: the columns of the table that rows of its kind make.
    """

    HEADER: ClassVar[tuple[str, ...]]

    @abstractmethod
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""


@dataclass
class Chapter:
    """The rows of one section.

    Attributes:
        notes: what was left out, and what failed.
        seconds: that it took; `None`: it has not ended.
        peak_bytes: the most device memory that was allocated in it; `None`: not on a GPU.
    """

    title: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float | None = None
    peak_bytes: int | None = None


class Record:
    """Writes and prints what it is told, at once: whatever ends the process, nothing is lost.

    Args:
        file: the JSON.
        about: what is true of all rows: the machine, the versions.
    """

    def __init__(self, file: Path, about: Mapping[str, str]) -> None:
        self.chapters: list[Chapter] = []
        self._file = file
        self._about = dict(about)
        for name, text in self._about.items():
            print(f"- {name}: {text}")
        print(flush=True)

    def begin(self, title: str) -> None:
        """What is added from now on belongs to a new section."""
        self.chapters.append(Chapter(title))
        print(f"### {title}\n", flush=True)

    def add(self, row: Row) -> None:
        """Adds a row to the section."""
        chapter = self.chapters[-1]
        if not chapter.rows:
            print(f"| {' | '.join(row.HEADER)} |\n|{'---|' * len(row.HEADER)}")
        print(f"| {' | '.join(row.cells())} |", flush=True)
        chapter.rows.append(row)
        self._write()

    def note(self, text: str) -> None:
        """Adds a remark to the section."""
        self.chapters[-1].notes.append(text)
        self._write()

    def end(self, seconds: float, peak_bytes: int | None) -> None:
        """Ends the section."""
        chapter = self.chapters[-1]
        chapter.seconds, chapter.peak_bytes = seconds, peak_bytes
        if chapter.rows:
            print()
        for text in chapter.notes:
            print(f"- {text}")
        peak = "" if peak_bytes is None else f"; at most {peak_bytes / GIB:.1f} GiB on the device"
        print(f"- {seconds:.1f} s{peak}\n", flush=True)
        self._write()

    def _write(self) -> None:
        """The whole file anew, in one move."""
        chapters = [
            {
                "title": chapter.title,
                "rows": [asdict(row) for row in chapter.rows],
                "notes": chapter.notes,
                "seconds": chapter.seconds,
                "peak_bytes": chapter.peak_bytes,
            }
            for chapter in self.chapters
        ]
        text = json.dumps({"about": self._about, "sections": chapters}, indent=1)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        written = self._file.with_suffix(".part")
        written.write_text(text + "\n")
        written.replace(self._file)


def number(value: float | None, digits: int = 1) -> str:
    """A cell; what is not known is a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def rate(value: float) -> str:
    """A cell of three digits, from a small machine's rates to a large one's."""
    return f"{value:.3g}"
