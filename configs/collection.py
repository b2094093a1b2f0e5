"""Adapters that no config lists: a folder, or what is stored below a prefix in S3, that has them by
name. One is

    NAME.safetensors
    NAME/pytorch_lora_weights.safetensors, or NAME/adapter_model.safetensors
    NAME/adapter_config.json, beside the latter two, of PEFT

and the first of these that is there counts. Names lead nowhere else: see `NAME`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from configs.sources import PROJECT_ROOT, SourceUnavailable, state

# A name is part of a path: without slashes, and letters that look alike are the same.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._+()-]{0,98}[A-Za-z0-9_+()-])?")
NAMES = (
    "a name is at most 100 letters (a to z, in either case), digits and . _ - + ( ) or spaces "
    "between them, and begins with a letter or digit"
)
SUFFIX = ".safetensors"
WEIGHTS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # in a folder
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/.*)?")


@dataclass(frozen=True)
class Held:
    """An adapter that is there.

    Attributes:
        where: its file's path or URI, for the log.
        state: what tells it from what stood there before.
        nbytes: of its files.
        bring: brings it to this machine and returns its file. Raises `SourceError` or `OSError`.
    """

    where: str
    state: str
    nbytes: int
    bring: Callable[[], Path] = field(compare=False)


class Collection(Protocol):
    """Where adapters are looked for. Thread-safe; all of it may hang."""

    @property
    def fresh_s(self) -> float:
        """Seconds for which what was found there is taken to be there still."""

    @property
    def missing_s(self) -> float:
        """The same of what was not found."""

    def find(self, name: str) -> Held | None:
        """The adapter of this name, which is a `NAME`; `None`: there is none.

        Raises `SourceError` or `OSError` if that cannot be told.
        """

    def count(self) -> int:
        """How many adapters there are. Raises what `find` does."""


def check_root(text: str) -> str:
    """Raises `ValueError` for what is neither a path nor `s3://bucket/prefix`."""
    if not text or "\0" in text:
        raise ValueError("it must be a folder, or s3://bucket/prefix/")
    if text.startswith("s3:") and not _S3.fullmatch(text):
        raise ValueError(f"{text!r} is not of the form s3://bucket/prefix/")
    return text


def collection_at(text: str, disk_bytes: int) -> Collection:
    """The collection that a config names.

    Args:
        text: `s3://bucket/prefix/`, or a folder, absolute or relative to the project's root.
        disk_bytes: that copies of what lies in S3 may take here.
    """
    if text.startswith("s3://"):
        from configs.s3_collection import S3Collection

        return S3Collection(text, disk_bytes)
    return FolderCollection(PROJECT_ROOT / text)


@dataclass(frozen=True)
class FolderCollection:
    """A folder, of this machine or shared by several. Links in it are followed: whoever may write
    there says what is read."""

    folder: Path
    fresh_s: float = 0.0
    missing_s: float = 0.0

    def find(self, name: str) -> Held | None:
        """See `Collection`."""
        self._check()
        beside = (self.folder / name / weights for weights in WEIGHTS)
        for file in (self.folder / f"{name}{SUFFIX}", *beside):
            if file.is_file():
                now, nbytes = state(str(file)), file.stat().st_size
                return Held(str(file), f"{file} {now}", nbytes, partial(Path, file))
        return None

    def count(self) -> int:
        """See `Collection`."""
        self._check()
        found = (path for pattern in ("*", "*/*") for path in self.folder.glob(pattern))
        paths = (path.relative_to(self.folder).as_posix() for path in found if path.is_file())
        return len(set(map(name_of, paths)) - {None})

    def _check(self) -> None:
        if not self.folder.is_dir():
            raise SourceUnavailable(f"{self.folder} is no folder on this machine")


def name_of(path: str) -> str | None:
    """Whose weights lie at this path below a collection; `None`: nobody's."""
    folder, _, file = path.rpartition("/")
    if folder:
        name = folder if file in WEIGHTS else ""
    else:
        name = file.removesuffix(SUFFIX) if file.endswith(SUFFIX) else ""
    return name if NAME.fullmatch(name) else None
