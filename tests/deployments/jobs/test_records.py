"""Two processes write the records of one job at once: at every place where one can be held up, or
die."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest

from deployments.contracts.errors import NotFound, StorageUnavailable
from deployments.jobs.objects import Listed, Objects, Stored, Written
from deployments.jobs.queue import ARCHIVED_S, JobQueue, LeaseLost
from deployments.jobs.record import JobRecord
from tests.deployments.jobs.test_queue import KEEP_S, Fate, Unreliable, job, made

STARTS = ("new", "claimed", "queued", "taken", "ended", "old", "archived", "left over", "deleted")
UNHEARD = ("new", "claimed", "deleted")  # nobody has been told that there is a job
FATES: tuple[Fate, ...] = ("lost", "unheard", "doubled", "late")


class Memory:
    """`Objects`, quick."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def read(self, name: str) -> Stored | None:
        content = self._files.get(name)
        return None if content is None else Stored(content, str(hash(content)))

    def create(self, name: str, content: bytes) -> Written | None:
        found = self._files.setdefault(name, content)
        return _written(content) if found == content else None

    def replace(self, name: str, content: bytes, tag: str) -> Written | None:
        found = self._files.get(name)
        if found is None or (str(hash(found)) != tag and found != content):
            return None
        self._files[name] = content
        return _written(content)

    def delete(self, name: str, tag: str | None = None) -> None:
        found = self.read(name)
        if found is not None and tag in (None, found.tag):
            del self._files[name]

    def listed(self, prefix: str) -> Iterator[Listed]:
        for name in sorted(self._files):
            if name.startswith(prefix):
                yield Listed(name, str(hash(self._files[name])), 0.0)


def _written(content: bytes) -> Written:
    return Written(str(hash(content)), str(hash(content)))


class Scene:
    """One job, two processes; time passes by hand."""

    def __init__(self) -> None:
        self.now = 1e9
        self.objects = Memory()
        self.store = Unreliable(self.objects)
        self.first = self._queue(self.store)
        self.other = self._queue(self.objects)
        self.deleted = False

    def _queue(self, objects: Objects) -> JobQueue:
        return JobQueue(objects, now=lambda: self.now)

    def asked(self) -> JobRecord:
        """The job, as somebody asks for it again: with a folder of its own."""
        return job("a", created_at=self.now)

    def begin(self, start: str) -> None:
        if start == "new":
            return
        if start == "claimed":
            self.interrupted(1, "lost", lambda: self.first.add(self.asked()))
            return
        self.first.add(self.asked())
        if start == "queued":
            return
        mine = self.first.take()
        assert mine is not None
        if start == "taken":
            return
        self.first.complete(mine, made("x"), {})
        if start == "ended":
            return
        self.now += ARCHIVED_S
        if start == "archived":
            self.first.sweep()
        elif start == "left over":
            self.interrupted(1, "lost", self.first.sweep)
        elif start == "deleted":
            self.interrupted(1, "lost", lambda: self.first.delete("a"))
            self.deleted = True

    def interrupted(self, good: int, fate: Fate, call: Callable[[], object]) -> bool:
        """Whether there were so many writes."""
        self.store.good, self.store.fate = good, fate
        with suppress(StorageUnavailable, NotFound):
            call()
        met = self.store.fate == "good"
        self.store.good, self.store.fate = 0, "good"
        return met

    def act(self, queue: JobQueue, what: str) -> None:
        if what == "sweep":
            queue.sweep()
        elif what == "delete":
            self.deleted = True  # also if it is not heard
            with suppress(NotFound):
                queue.delete("a")
        elif what == "add":
            queue.add(self.asked())
        elif what == "work":  # and it ended a while ago
            queue.sweep()
            if (mine := queue.take()) is not None:
                with suppress(LeaseLost):
                    queue.complete(mine, made("y"), {})
            self.now += ARCHIVED_S
            queue.sweep()

    def record(self) -> JobRecord | None:
        """As a third reads it."""
        try:
            return self._queue(self.objects).get("a")
        except NotFound:
            return None


ACTS = ("sweep", "delete", "add", "work")


@pytest.mark.parametrize("start", STARTS)
def test_nothing_is_lost_or_comes_back(start: str) -> None:
    """Whatever one is at, and the other does before it goes on, or when it has died."""
    for act, fate, between, after in itertools.product(ACTS, FATES, ACTS, ACTS):
        for good in itertools.count():
            told = f"{start}: {act}, {fate} after {good}, {between}, {after}"
            if not _is_met(Scene(), start, act, fate, good, between, after, told):
                break


def _is_met(
    scene: Scene,
    start: str,
    act: str,
    fate: Fate,
    good: int,
    between: str,
    after: str,
    told: str,
) -> bool:
    scene.begin(start)
    before = scene.record()
    scene.store.between = partial(scene.act, scene.other, between)
    met = scene.interrupted(good, fate, partial(scene.act, scene.first, act))
    heard = not met or fate in ("doubled", "late")
    midway = scene.record()
    if not heard:
        scene.act(scene.other, between)
    scene.act(scene.other, after)
    record = scene.record()
    if before is not None and not scene.deleted:
        assert record is not None, told
        assert record.folder == before.folder, told
        assert not before.ended or record == before, told
    if after == "add":
        assert record is not None, told
    if after == "delete" or (act == "delete" and heard and "add" not in (between, after)):
        assert record is None, told
    if "add" not in (between, after) and (midway is None or midway.ended):
        assert record is None or record == midway, told
    scene.other.sweep()
    if record is not None and not record.ended:
        shown = [one.id for one in JobQueue(scene.objects).open_jobs()]
        accepted = after == "add" or (start not in UNHEARD and not scene.deleted)
        assert shown == ["a"] or not accepted, f"{told}: not seen by who looks for work"
        if record.lease is None:
            scene.act(scene.other, "work")
            done = scene.record()
            assert done is not None, told
            assert (done.status, done.folder) == ("completed", record.folder), told
        else:
            scene.other.cancel("a")
    assert (scene.record() is None) == (record is None), told
    scene.now += KEEP_S + 1
    scene.other.sweep()
    assert list(scene.objects.listed("")) == [], told
    return met


def test_a_reader_who_is_held_up_finds_how_it_ended() -> None:
    """It was open when he began, and was archived when he came to look there."""
    scene = Scene()
    scene.begin("old")

    class HeldUp(Unreliable):
        def read(self, name: str) -> Stored | None:
            if name.startswith("open/"):
                scene.other.sweep()
            return super().read(name)

    assert JobQueue(HeldUp(scene.objects)).get("a").status == "completed"
