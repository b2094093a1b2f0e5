"""`Objects` in a folder: of one machine, or of a file system that several share and that has
locks (NFS 4, EFS, Lustre)."""

import errno
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from deployments.contracts.errors import StorageUnavailable
from deployments.jobs.objects import Listed, Stored, Written

FILES, LOCKS, NEW = "files", "locks", "new"
LOCK_FILES = 64  # names share them: writers of other names seldom wait for each other
PATIENCE_S = 10.0  # for a lock; a writer holds it for milliseconds
PAUSE_S = 0.005
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
UNFINISHED_S = 86_400.0  # a file that is being written for so long has no writer any more
NAME = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")


class FolderObjects:
    """Files below a folder, which is made when the first is written.

    A writer holds a lock that its process's death lets go of, and shows a file only when it is
    whole: readers need no lock.
    """

    def __init__(self, folder: Path) -> None:
        self._files, self._locks, self._new = folder / FILES, folder / LOCKS, folder / NEW
        self._forget_unfinished()

    def read(self, name: str) -> Stored | None:
        """As `Objects`."""
        try:
            content = self._place(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unavailable(error) from error
        return Stored(content, _tag(content))

    def create(self, name: str, content: bytes) -> Written | None:
        """As `Objects`."""
        return self._written(name, content, lambda found: found is None)

    def replace(self, name: str, content: bytes, tag: str) -> Written | None:
        """As `Objects`."""
        return self._written(name, content, lambda found: found is not None and found.tag == tag)

    def delete(self, name: str, tag: str | None = None) -> None:
        """As `Objects`. A folder of which nothing is left goes with it."""
        with self._locked(name):
            if tag is not None and (found := self.read(name)) is not None and found.tag != tag:
                return
            try:
                self._place(name).unlink(missing_ok=True)
            except OSError as error:
                raise _unavailable(error) from error
        with suppress(OSError):  # others are in it, or it is gone
            (self._files / name).parent.rmdir()

    def listed(self, prefix: str) -> Iterator[Listed]:
        """As `Objects`."""
        folder = prefix[: prefix.rfind("/") + 1]
        try:
            found = sorted(_walked(str(self._files / folder), folder))
        except OSError as error:
            raise _unavailable(error) from error
        yield from (one for one in found if one.name.startswith(prefix))

    def _written(
        self, name: str, content: bytes, may: Callable[[Stored | None], bool]
    ) -> Written | None:
        """A write, if it may be made over what is there. If not, that may be what was to be
        written: a first try whose answer was lost."""
        found = self.read(name)
        if may(found):
            with self._prepared(content) as file:  # before the lock: however long it takes
                with self._locked(name):
                    found = self.read(name)
                    shown = may(found) and _show(file.name, self._place(name), found is None)
                if shown:
                    self._sync_above(name)
                    return Written(_tag(content), _version(os.fstat(file.fileno())))
                found = found or self.read(name)
        same = found is not None and found.content == content
        return Written(_tag(content), "") if same else None

    @contextmanager
    def _prepared(self, content: bytes) -> Iterator[IO[bytes]]:
        """A file that has no name among the others yet; it goes, if it is given none."""
        try:
            self._new.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._new, delete=False) as file:
                try:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())  # what is accepted outlives the machine
                    yield file
                finally:
                    with suppress(FileNotFoundError):
                        os.unlink(file.name)
        except OSError as error:
            raise _unavailable(error) from error

    def _sync_above(self, name: str) -> None:
        """A name is there for good when its folders are."""
        for folder in self._place(name).parents[: name.count("/") + 1]:
            with suppress(FileNotFoundError):  # whoever deleted the file has removed it
                _sync(folder)

    def _place(self, name: str) -> Path:
        if NAME.fullmatch(name) is None or ".." in name:
            raise ValueError(f"{name!r} is no name of an object")
        return self._files / name

    def _forget_unfinished(self) -> None:
        """What processes that were killed in a write have left."""
        with suppress(OSError):
            for file in self._new.iterdir():
                if time.time() - file.stat().st_mtime > UNFINISHED_S:
                    file.unlink()

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


def _show(written: str, place: Path, new: bool) -> bool:
    """Gives a file its name, in a folder that whoever deletes may remove at any time. Whether it
    has it: a name that is `new` may be another's by the word of the file system, which a client of
    NFS did not know of yet."""
    while True:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            if new:
                return _linked(written, place)
            os.replace(written, place)
        except FileNotFoundError:
            if not os.path.exists(written):  # a cleaner of temporary files took it
                raise
            continue
        return True


def _linked(written: str, place: Path) -> bool:
    try:
        os.link(written, place)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.replace(written, place)
    return True


def _version(found: os.stat_result) -> str:
    return f"{found.st_ino}-{found.st_mtime_ns}"


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _walked(folder: str, below: str) -> Iterator[Listed]:
    """All files of a folder, whose name in the list begins with `below`."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walked(entry.path, f"{below}{entry.name}/")
                continue
            with suppress(FileNotFoundError):  # it was removed since
                found = entry.stat()
                yield Listed(below + entry.name, _version(found), found.st_mtime)


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
