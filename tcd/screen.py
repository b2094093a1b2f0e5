"""What people see of long work: bars on standard error, pictures on a terminal that has colours."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

UPPER_HALF = "\N{UPPER HALF BLOCK}"  # two pixels: its own colour above, its ground below
COLUMNS = 64  # of a picture on the terminal

WIDE = 400  # columns of a table that a program reads

people = Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """What is waited for: a line on standard error, above the bars where some are shown."""
    people.print(text, style="dim")


def printed(table: Table) -> None:
    """Prints a table; in a pipe each row is a line."""
    width = None if sys.stdout.isatty() else WIDE
    Console(highlight=False, width=width).print(table)


class Screen:
    """Bars of some images, or of one video."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[int, TaskID] = {}
        self._said: list[str] = []

    def say(self, result: str) -> None:
        """A line for standard output; where bars are shown, as soon as they are gone."""
        if self._progress.disable:
            typer.echo(result)
        else:
            self._said.append(result)

    def made(self, path: Path, said: Mapping[str, Any], as_json: bool) -> None:
        """The line of a file that was made; `said`: of it, with its `size`."""
        line = json.dumps({"file": str(path), **said}) if as_json else f"{path}  {said['size']}"
        self.say(line)

    def end(self) -> None:
        """The bars are gone."""
        for result in self._said:
            typer.echo(result)

    def advance(self, index: int, share: float, said: str) -> None:
        """An image, or the video, is so far."""
        if index not in self._bars:
            self._bars[index] = self._progress.add_task(said, total=1.0)
        self._progress.update(self._bars[index], completed=share, description=said)

    def picture(self, data: bytes) -> None:
        """Shows a picture, if the terminal can."""
        if self._progress.console.is_terminal:
            self._progress.console.print(drawn(data))


@contextmanager
def screen(quiet: bool) -> Iterator[Screen]:
    """A screen until the block ends; it shows nothing where nobody looks, or if it is `quiet`."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    shown = people.is_terminal and not quiet
    progress = Progress(*columns, console=people, disable=not shown, transient=True)
    screen = Screen(progress)
    try:
        with progress:
            yield screen
    finally:
        screen.end()


def drawn(data: bytes, columns: int = COLUMNS) -> Text:
    """A picture in half blocks, two pixels a character."""
    with Image.open(BytesIO(data)) as image:
        columns = min(columns, people.width)
        rows = max(2, round(image.height * columns / image.width / 2) * 2)
        small = image.convert("RGB").resize((columns, rows), Image.Resampling.LANCZOS)
    text = Text()
    for row in range(0, rows, 2):
        for column in range(columns):
            above, below = (_colour(small, column, row + half) for half in (0, 1))
            text.append(UPPER_HALF, Style(color=above, bgcolor=below))
        text.append("\n")
    return text


def _colour(image: Image.Image, x: int, y: int) -> str:
    red, green, blue = image.getpixel((x, y))  # type: ignore[misc]
    return f"#{red:02x}{green:02x}{blue:02x}"
