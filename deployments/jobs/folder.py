"""`Objects` in a folder: of one machine, or of a file system that several share and that has
locks (NFS 4, EFS, Lustre)."""

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.contracts.errors import StorageUnavailable
from deployments.jobs.objects import Stored

FILES, LOCKS = "files", "locks"
LOCK_FILES = 64  # names share them: writers of other names seldom wait for each other
PATIENCE_S = 10.0  # for a lock; a writer holds it for milliseconds
PAUSE_S = 0.005


class FolderObjects:
    """Files below a folder, which is made when the first is written.

    A writer holds a lock that its process's death lets go of, and shows a file only when it is
    whole: readers need no lock.
    """

    def __init__(self, folder: Path) -> None:
        self._files, self._locks = folder / FILES, folder / LOCKS

    def read(self, name: str) -> Stored | None:
        """As `Objects`."""
        try:
            content = (self._files / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unavailable(error) from error
        return Stored(content, _tag(content))

    def create(self, name: str, content: bytes) -> str | None:
        """As `Objects`."""
        with self._locked(name):
            found = self.read(name)
            if found is None:
                self._write(name, content)
        return _tag(content) if found is None or found.content == content else None

    def replace(self, name: str, content: bytes, tag: str) -> str | None:
        """As `Objects`."""
        with self._locked(name):
            found = self.read(name)
            if found is not None and found.tag == tag:
                self._write(name, content)
                return _tag(content)
        return found.tag if found is not None and found.content == content else None

    def delete(self, name: str) -> None:
        """As `Objects`."""
        with self._locked(name):
            try:
                (self._files / name).unlink(missing_ok=True)
            except OSError as error:
                raise _unavailable(error) from error

    def names(self, prefix: str) -> Iterator[str]:
        """As `Objects`."""
        folder = self._files / prefix.rpartition("/")[0]
        try:
            found = sorted(
                file.relative_to(self._files).as_posix()
                for file in folder.rglob("*")
                if file.is_file() and not file.name.startswith(".")
            )
        except OSError as error:
            raise _unavailable(error) from error
        yield from (name for name in found if name.startswith(prefix))

    def _write(self, name: str, content: bytes) -> None:
        place = self._files / name
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".", delete=False) as file:
                try:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())  # what is accepted outlives the machine
                    os.replace(file.name, place)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            raise _unavailable(error) from error

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        number = hashlib.sha256(name.encode()).digest()[0] % LOCK_FILES
        until = time.monotonic() + PATIENCE_S
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._locks / f"{number:02}", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise _unavailable(error) from error
        try:
            while not _taken(lock):
                if time.monotonic() > until:
                    raise StorageUnavailable(
                        f"the folder of jobs is locked for {PATIENCE_S:g} s: its writer hangs"
                    )
                time.sleep(PAUSE_S)
            yield
        finally:
            os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _unavailable(error) from error
    return True


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _unavailable(error: OSError) -> StorageUnavailable:
    return StorageUnavailable(f"the folder of jobs does not answer ({error.strerror})")
