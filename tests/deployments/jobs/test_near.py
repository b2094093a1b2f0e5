"""Who reaches the files of a job store, and how."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.contracts.errors import StorageUnavailable
from deployments.jobs.folder import FolderObjects
from deployments.jobs.near import ASKED_S, NearObjects
from deployments.jobs.objects import Listed, Stored, Written
from deployments.jobs.place import Place, place_of


class Store:
    """A job store of another process, that may have gone."""

    def __init__(self, folder: Path) -> None:
        self.asked = list[str]()
        self.gone = False
        self.moved(folder)

    def moved(self, folder: Path) -> None:
        """It has been started anew on another node."""
        folder.mkdir(exist_ok=True)
        self._objects = FolderObjects(folder)
        self.at = place_of(folder)

    def place(self) -> Place:
        return self._there("place").at

    def read(self, name: str) -> Stored | None:
        return self._there("read")._objects.read(name)

    def create(self, name: str, content: bytes) -> Written | None:
        return self._there("create")._objects.create(name, content)

    def replace(self, name: str, content: bytes, tag: str) -> Written | None:
        return self._there("replace")._objects.replace(name, content, tag)

    def delete(self, name: str, tag: str | None = None) -> None:
        self._there("delete")._objects.delete(name, tag)

    def listed(self, prefix: str) -> Iterator[Listed]:
        return self._there("listed")._objects.listed(prefix)

    def _there(self, call: str) -> "Store":
        self.asked.append(call)
        if self.gone:
            raise StorageUnavailable("gone")
        return self


def asked_anew(objects: NearObjects) -> None:
    """Has it learn where the store is."""
    objects.read("jobs/none")
    assert objects.asks is not None
    objects.asks.join()


def use(objects: NearObjects) -> None:
    """All that it is asked for; leaves nothing."""
    written = objects.create("jobs/a", b"1")
    assert written is not None
    assert objects.replace("jobs/a", b"2", written.tag) is not None
    stored = objects.read("jobs/a")
    assert stored is not None
    assert stored.content == b"2"
    assert [one.name for one in objects.listed("jobs/")] == ["jobs/a"]
    objects.delete("jobs/a")
    assert list(objects.listed("jobs/")) == []


def test_who_sees_the_folder_needs_no_handle(tmp_path: Path) -> None:
    store, now = Store(tmp_path), [0.0]
    objects = NearObjects(store, lambda: now[0])
    asked_anew(objects)
    store.asked.clear()
    use(objects)
    now[0] += ASKED_S + 1
    store.gone = True
    asked_anew(objects)
    use(objects)  # it is being started anew
    store.gone = False
    now[0] += ASKED_S + 1
    asked_anew(objects)
    use(objects)
    assert store.asked == ["place"] * 2


def test_nobody_waits_for_a_store_that_does_not_say_where_it_is(tmp_path: Path) -> None:
    go = threading.Event()

    class Hangs(Store):
        def place(self) -> Place:
            if self.gone:
                assert go.wait(30)
            return super().place()

    store, now = Hangs(tmp_path), [0.0]
    objects = NearObjects(store, lambda: now[0])
    asked_anew(objects)
    store.asked.clear()
    store.gone = True
    now[0] += ASKED_S + 1
    for _ in range(2):
        use(objects)
        now[0] += ASKED_S + 1
    assert store.asked == []
    go.set()
    assert objects.asks is not None
    objects.asks.join()
    assert store.asked == ["place"]


@pytest.mark.parametrize("other", ["no folder", "another of its name"])
def test_who_does_not_see_it_asks_by_handle(tmp_path: Path, other: str) -> None:
    store = Store(tmp_path / "theirs")
    folder = tmp_path / "mine"
    if other == "another of its name":  # of this machine
        folder.mkdir()
        assert place_of(folder) == place_of(folder)
    store.at = Place(str(folder), store.at.token)
    objects = NearObjects(store)
    asked_anew(objects)
    store.asked.clear()
    use(objects)
    asked = ["create", "replace", "read", "listed", "delete", "listed"]
    assert store.asked == asked


def test_a_store_that_is_elsewhere_by_now_is_found(tmp_path: Path) -> None:
    store, now = Store(tmp_path / "first"), [0.0]
    objects = NearObjects(store, lambda: now[0])
    asked_anew(objects)
    objects.create("jobs/a", b"1")
    store.moved(tmp_path / "second")
    store.at = Place("/nowhere", store.at.token)  # another machine
    now[0] += ASKED_S + 1
    asked_anew(objects)
    assert objects.read("jobs/a") is None
    assert store.asked[-1] == "read"


def test_a_store_that_never_answered_is_away(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.gone = True
    with pytest.raises(StorageUnavailable):
        NearObjects(store).create("jobs/a", b"1")
