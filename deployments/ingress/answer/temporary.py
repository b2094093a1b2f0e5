"""Files by URL for a while, where no storage is configured: in a folder of this node.

The ingresses of one service on one node share it. Another user of the node can neither read it nor
have put it there.
"""

import asyncio
import logging
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from configs.app import TemporaryStorage
from deployments.contracts.errors import StorageUnavailable
from deployments.ingress.answer.storage import NAME, FolderStore, not_taken

MIB = 2**20
SWEEP_S = 2.0  # least time between two looks at the folder for what is stored
IDLE_SWEEP_S = 60.0  # the same where nothing is stored
WRITING_S = 600.0  # a file that is not done by then has no writer any more
log = logging.getLogger("ray.serve.tcd.storage")


def folder_of(service: str) -> Path:
    """The folder of the service of this name, for this user of this node."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", service)
    return Path(tempfile.gettempdir()) / f"tcd-files-{os.getuid()}-{name}"


class TemporaryStore(FolderStore):
    """A folder whose files are shown for `keep_s`, and whose oldest go first above the budget."""

    def __init__(self, args: TemporaryStorage, folder: Path, service_url: str | None) -> None:
        super().__init__(folder, service_url)
        self._args = args
        self._sweeping = threading.Lock()
        self._swept = 0.0

    def read(self, name: str) -> bytes | None:
        """As `FolderStore` says; what has expired is gone."""
        if NAME.fullmatch(name) is None or not self._owned():
            return None
        try:
            expired = self._expired((self._folder / name).lstat().st_mtime)
        except OSError:
            return None
        return None if expired else super().read(name)

    async def keep_swept(self) -> None:
        """Deletes what has expired, also while nothing is stored; does not end."""
        while True:
            await asyncio.to_thread(self.sweep)
            await asyncio.sleep(min(IDLE_SWEEP_S, self._args.keep_s))

    def sweep(self) -> None:
        """Deletes what has expired, the oldest files above the budget, but never the newest, and
        what a process that died had begun to write."""
        try:
            for path in list(self._abandoned()) if self._owned() else []:
                path.unlink(missing_ok=True)
            files = sorted(self._files()) if self._owned() else []
            total = sum(size for _, size, _ in files)
            for index, (changed, size, path) in enumerate(files):
                above = total > self._args.budget_mb * MIB and index < len(files) - 1
                if self._expired(changed) or above:
                    path.unlink(missing_ok=True)
                    total -= size
        except OSError as error:
            log.warning("%s cannot be swept: %s", self._folder, error)

    def _write(self, name: str, data: bytes) -> str:
        with suppress(OSError):
            self._folder.mkdir(mode=0o700)
        if not self._owned():
            log.error("%s is no folder, or not of this user alone", self._folder)
            raise StorageUnavailable(not_taken("folder, not of this user alone"))
        super()._write(name, data)
        self._sweep_at_times()
        return name

    def _sweep_at_times(self) -> None:
        if time.monotonic() - self._swept < SWEEP_S or not self._sweeping.acquire(blocking=False):
            return
        try:
            self.sweep()
            self._swept = time.monotonic()
        finally:
            self._sweeping.release()

    def _owned(self) -> bool:
        """Whether the folder is there, this user's, and nobody else may look into it."""
        try:
            found = self._folder.lstat()
        except OSError:
            return False
        private = stat.S_IMODE(found.st_mode) & 0o077 == 0
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and private

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(time of change, bytes, path) of what was stored."""
        for path in self._folder.iterdir():
            if NAME.fullmatch(path.name):
                with suppress(FileNotFoundError):  # another ingress sweeps, too
                    found = path.lstat()
                    yield found.st_mtime, found.st_size, path

    def _abandoned(self) -> Iterator[Path]:
        """What is written under another name until it is done, and has not been for long."""
        for path in self._folder.iterdir():
            if path.name.startswith("."):
                with suppress(FileNotFoundError):
                    if time.time() - path.lstat().st_mtime > WRITING_S:
                        yield path

    def _expired(self, changed: float) -> bool:
        return time.time() - changed > self._args.keep_s
