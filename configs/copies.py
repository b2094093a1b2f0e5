"""Copies on this machine of what lies elsewhere, within a budget."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

IN_USE_S = 60.0  # what was written or read since is not deleted


class Copies:
    """Folders in one folder, each a copy, which several processes may share. The least recently
    used go first.

    Args:
        folder: where they stand; made when it is needed.
        budget_bytes: of all together. What is in use may exceed it for a while.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder = folder
        self._budget_bytes = budget_bytes

    def place(self, name: str) -> Path:
        """The folder for a copy, there already or new, and from now on in use."""
        place = self._folder / name
        place.mkdir(parents=True, exist_ok=True)
        os.utime(place)
        return place

    def make_room(self, nbytes: int) -> None:
        """For what is to be written: deletes what was not used for longest."""
        found = sorted(self._found())
        excess = sum(size for _, size, _ in found) + nbytes - self._budget_bytes
        for used, size, copy in found:
            if excess <= 0 or time.time() - used < IN_USE_S:
                break
            with suppress(OSError):  # another process may be at it, too
                if _seen(copy)[0] != used:
                    continue  # it has just been taken
                shutil.rmtree(copy)
            excess -= size

    def _found(self) -> Iterator[tuple[float, int, Path]]:
        """All copies, as `_seen`. What a process left half-written counts."""
        for copy in self._folder.iterdir():
            with suppress(OSError):  # it has just been deleted
                yield *_seen(copy), copy


def _seen(copy: Path) -> tuple[float, int]:
    """When a copy was last used, on the system's clock, and its bytes."""
    inside = [file.stat() for file in copy.iterdir()]
    used = max(stat.st_mtime for stat in (copy.stat(), *inside))
    return used, sum(stat.st_size for stat in inside)
