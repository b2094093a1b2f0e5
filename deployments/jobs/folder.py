"""`Objects` in a folder: of one machine, or of a file system that several share and that has
locks (NFS 4, EFS, Lustre)."""

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import _TemporaryFileWrapper

from deployments.contracts.errors import StorageUnavailable
from deployments.jobs.objects import Listed, Stored

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

    def delete(self, name: str, tag: str | None = None) -> None:
        """As `Objects`. A folder of which nothing is left goes with it."""
        with self._locked(name):
            if tag is not None and (found := self.read(name)) is not None and found.tag != tag:
                return
            try:
                (self._files / name).unlink(missing_ok=True)
            except OSError as error:
                raise _unavailable(error) from error
        with suppress(OSError):  # others are in it, or it is gone
            (self._files / name).parent.rmdir()

    def listed(self, prefix: str) -> Iterator[Listed]:
        """As `Objects`."""
        folder = self._files / prefix.rpartition("/")[0]
        try:
            found = sorted(_walked(folder, self._files))
        except OSError as error:
            raise _unavailable(error) from error
        yield from (one for one in found if one.name.startswith(prefix))

    def _write(self, name: str, content: bytes) -> None:
        place = self._files / name
        try:
            with _new_file(place.parent) as file:
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


def _new_file(folder: Path) -> "_TemporaryFileWrapper[bytes]":
    """A file without a name yet, in a folder that who deletes may remove at any time."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False)


def _walked(folder: Path, root: Path) -> Iterator[Listed]:
    """All whole files below a folder."""
    for path, _, names in os.walk(folder, onerror=_unless_gone):
        for name in names:
            file = Path(path, name)
            if not name.startswith("."):
                with suppress(FileNotFoundError):  # it was removed since
                    found = file.stat()
                    version = f"{found.st_ino}-{found.st_mtime_ns}"
                    yield Listed(file.relative_to(root).as_posix(), version, found.st_mtime)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


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
