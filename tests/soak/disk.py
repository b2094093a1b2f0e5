"""A folder that can be full."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SmallDisk:
    """A folder. `mounted`: whether it is on a small file system of its own."""

    folder: Path
    mounted: bool

    @contextmanager
    def full(self) -> Iterator[None]:
        """It takes nothing more within the block: no space is left, or a file is in its place."""
        if not self.mounted:
            away = self.folder.with_suffix(".away")
            self.folder.rename(away)
            self.folder.touch()
            try:
                yield
            finally:
                self.folder.unlink()
                away.rename(self.folder)
            return
        filler = self.folder / ".filler"
        try:
            _fill(filler)
            yield
        finally:
            filler.unlink()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """A small file system at `folder`; a plain folder for whoever may not mount one."""
    folder.mkdir(parents=True)
    mounted = shutil.which("mount") is not None and _run(
        "mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "soak", str(folder)
    )
    try:
        yield SmallDisk(folder, mounted)
    finally:
        if mounted:
            _run("umount", str(folder))


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(2**12)):
                pass
        except OSError:
            return


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
