"""What jobs are written to: small files by name, each replaced only by who has seen it last.

That is all that is asked of a storage: a folder that several machines share, or an S3 bucket with
conditional writes. Calls block; who has an event loop makes them on a thread.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Stored(NamedTuple):
    """A file as it was read. `tag`: of these contents; `Objects.replace` asks for it."""

    content: bytes
    tag: str


class Written(NamedTuple):
    """A file as it was written.

    Attributes:
        tag: as `Stored.tag`.
        version: as `Listed.version`: who finds another one in a list finds what others have
            written. Empty: unknown.
    """

    tag: str
    version: str


class Listed(NamedTuple):
    """A file as a list names it.

    Attributes:
        version: another one whenever the file was written; not its tag.
        changed_at: when it was written, Unix time of the storage's clock.
    """

    name: str
    version: str
    changed_at: float


class Objects(Protocol):
    """Files by name: letters, digits, `_`, `-`, `.`, and `/` between folders.

    No two contents that are ever written under one name are equal: a write whose answer was lost is
    told by them from a write that was not made. Every method raises `StorageUnavailable` if the
    storage does not answer; a write may have been made then.
    """

    def read(self, name: str) -> Stored | None:
        """A file; `None`: there is none."""
        ...

    def create(self, name: str, content: bytes) -> Written | None:
        """Writes a file that is not there yet. `None`: another one is there."""
        ...

    def replace(self, name: str, content: bytes, tag: str) -> Written | None:
        """Writes a file anew that is still as it was read. `None`: it is no longer."""
        ...

    def delete(self, name: str, tag: str | None = None) -> None:
        """Removes a file, if it is there; with `tag`, if it is still as it was read."""
        ...

    def listed(self, prefix: str) -> Iterator[Listed]:
        """The files whose names begin so, in order."""
        ...
