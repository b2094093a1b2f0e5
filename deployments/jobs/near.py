"""The objects of the `JobStore`, as they are reached best: its folder itself where this process
sees it, else by its handle."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from deployments.contracts.errors import StorageUnavailable
from deployments.jobs.folder import FolderObjects
from deployments.jobs.objects import Listed, Objects, Stored, Written
from deployments.jobs.place import Place

ASKED_S = 10.0  # for which the store is taken to be where it was: it may be started anew elsewhere


class Store(Objects, Protocol):
    """A job store, by its handle."""

    def place(self) -> Place:
        """Where its files are. Raises `StorageUnavailable`."""
        ...


class NearObjects:
    """`Objects` of a job store. Calls by handle cost both sides more than what they ask for, and
    whoever has the folder needs none while the store is started anew. Not to be called on the event
    loop.

    Attributes:
        asks: the thread that asks, or has asked last, where the store is.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._asking = threading.Lock()
        self._asked_at: float | None = None
        self._objects: Objects = store
        self.asks: threading.Thread | None = None

    def read(self, name: str) -> Stored | None:
        """As `Objects`."""
        return self._reached().read(name)

    def create(self, name: str, content: bytes) -> Written | None:
        """As `Objects`."""
        return self._reached().create(name, content)

    def replace(self, name: str, content: bytes, tag: str) -> Written | None:
        """As `Objects`."""
        return self._reached().replace(name, content, tag)

    def delete(self, name: str, tag: str | None = None) -> None:
        """As `Objects`."""
        self._reached().delete(name, tag)

    def listed(self, prefix: str) -> Iterator[Listed]:
        """As `Objects`."""
        return self._reached().listed(prefix)

    def _reached(self) -> Objects:
        """As it was reached last; who comes later finds what a thread beside has learnt. Before the
        first answer everybody asks by handle."""
        with self._asking:
            if self._asked_at is None or self._clock() - self._asked_at > ASKED_S:
                self._asked_at = math.inf  # nobody else asks meanwhile
                self.asks = threading.Thread(target=self._ask, name="job store?", daemon=True)
                self.asks.start()
        return self._objects

    def _ask(self) -> None:
        try:
            self._objects = self._found()
        except StorageUnavailable:
            pass  # it is being started anew: its folder is where it was
        finally:
            self._asked_at = self._clock()

    def _found(self) -> Objects:
        place = self._store.place()
        return FolderObjects(Path(place.folder)) if place.is_seen else self._store
