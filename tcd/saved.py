"""Files as commands name them: after the seed, and never over one that is there."""

from itertools import count
from pathlib import Path

from tcd.service import Failed


def prepared(folder: Path) -> None:
    """Makes a folder for files, before they cost anything. Raises `Failed`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"--out {folder}: {error.strerror or error}") from None


def saved(folder: Path, stem: str, kind: str, data: bytes) -> Path:
    """Writes a file of a kind, as requests call it; with a number behind its name if there is one
    of it already."""
    suffix = kind.replace("jpeg", "jpg")
    try:
        for number in count(1):
            name = stem if number == 1 else f"{stem}-{number}"
            path = folder / f"{name}.{suffix}"
            try:
                with path.open("xb") as file:
                    file.write(data)
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise Failed(f"{folder}: {error.strerror or error}") from None
    raise AssertionError
