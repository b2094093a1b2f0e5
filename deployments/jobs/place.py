"""Where a store has its files, as it tells others."""

from pathlib import Path
from typing import NamedTuple
from uuid import uuid4


class Place(NamedTuple):
    """A folder. `token`: the name of a file in it, by which it is told from all others of its name,
    on other machines and in containers."""

    folder: str
    token: str

    @property
    def is_seen(self) -> bool:
        """Whether it is a folder of this process, too."""
        try:
            return (Path(self.folder) / self.token).exists()
        except OSError:
            return False


def place_of(folder: Path) -> Place:
    """A folder that is there; it is given a token if it has none."""
    token = next(folder.glob("token-*"), folder / f"token-{uuid4().hex}")
    token.touch()
    return Place(str(folder), token.name)
