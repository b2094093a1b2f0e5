"""The queue as a state machine: workers that die, stand still and lose answers, over both stores.

Whatever happens, no job is lost, each is answered once, and by who holds it.
"""

import json
import logging
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from configs.jobs import JobsArgs
from deployments.contracts.errors import Conflict, NotFound, StorageUnavailable
from deployments.jobs.bucket import BucketObjects
from deployments.jobs.folder import FolderObjects
from deployments.jobs.objects import Listed, Objects, Stored, Written
from deployments.jobs.queue import (
    ARCHIVED_S,
    DROPPED_S,
    MOST_ATTEMPTS,
    ORPHANED_S,
    POISONED,
    JobQueue,
    LeaseLost,
    is_held,
)
from deployments.jobs.record import JobError, JobFile, JobRecord, Kind, Lease, SoFar
from tests.object_store import BUCKET, ObjectStore

LEASE_S = 30.0
KEEP_S = 1000.0
WORKERS = 2
STEPS = 24  # of a wait: a worker looks often
Fate = Literal["good", "lost", "unheard", "doubled", "late"]
FATES: tuple[Fate, ...] = ("good", "good", "lost", "unheard", "doubled", "late")
Work = Literal["renew", "complete", "fail", "give_back"]
WORK: tuple[Work, ...] = ("renew", "complete", "fail", "give_back")


Made = TypeVar("Made")


class Unreliable:
    """Objects of which one write, after `good` others, is not made, is made but not answered, is
    made twice, or comes after `between`: what somebody else does meanwhile."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.fate: Fate = "good"
        self.good = 0
        self.between: Callable[[], object] = lambda: None

    def read(self, name: str) -> Stored | None:
        return self.objects.read(name)

    def create(self, name: str, content: bytes) -> Written | None:
        return self._made(lambda: self.objects.create(name, content))

    def replace(self, name: str, content: bytes, tag: str) -> Written | None:
        return self._made(lambda: self.objects.replace(name, content, tag))

    def delete(self, name: str, tag: str | None = None) -> None:
        self._made(lambda: self.objects.delete(name, tag))

    def listed(self, prefix: str) -> Iterator[Listed]:
        return self.objects.listed(prefix)

    def _made(self, write: Callable[[], Made]) -> Made:
        if self.good > 0:
            self.good -= 1
            return write()
        fate, self.fate = self.fate, "good"
        if fate == "lost":
            raise StorageUnavailable("lost")
        if fate == "late":
            self.between()
        made = write()
        if fate == "unheard":
            raise StorageUnavailable("made, but not answered")
        return write() if fate == "doubled" else made


class Clock:
    """Of one process: it began anywhere, and is fast or slow."""

    def __init__(self, began: float, rate: float) -> None:
        self._began, self.rate, self.passed = began, rate, 0.0

    def __call__(self) -> float:
        return self._began + self.rate * self.passed


def job(job_id: str, priority: int = 0, digest: str = "asked", **fields: Any) -> JobRecord:
    known: dict[str, Any] = {
        "id": job_id,
        "kind": "image",
        "owner": "alice",
        "digest": digest,
        "request": {"prompt": "a"},
        "folder": f"files/{uuid4().hex}/",
        "created_at": 0.0,
        "priority": priority,
        "keep_s": KEEP_S,
    }
    return JobRecord(**known | fields)


def made(name: str, size: int = 1) -> tuple[JobFile, ...]:
    return (JobFile(name=name, role="0", media_type="image/png", size=size),)


class Jobs(RuleBasedStateMachine):
    """Workers by number, each with a queue and a clock of its own, and jobs by id."""

    objects: Objects  # given by the test
    jobs: Bundle[str] = Bundle("jobs")

    @initialize(
        rates=st.lists(st.sampled_from([0.5, 1.0, 1.5]), min_size=WORKERS, max_size=WORKERS)
    )
    def begin(self, rates: tuple[float, ...]) -> None:
        self.stores = [Unreliable(self.objects) for _ in range(WORKERS)]
        self.clocks = [Clock(1e6 * number, rate) for number, rate in enumerate(rates)]
        self.passed = 0.0
        self.queues = [self._queue(number) for number in range(WORKERS)]
        self.held: dict[int, JobRecord] = {}  # what each worker believes to hold
        self.known: dict[str, int] = {}  # accepted, and how often each was taken
        self.ends: dict[str, JobRecord] = {}  # as it was first seen to have ended
        self.beats: dict[Lease, float] = {}  # when each was first there, in true seconds
        self.count = 0

    def _queue(self, number: int) -> JobQueue:
        return JobQueue(
            self.stores[number], LEASE_S, self.clocks[number], now=lambda: 1e9 + self.passed
        )

    @rule(
        target=jobs,
        worker=st.integers(0, WORKERS - 1),
        fate=st.sampled_from(FATES),
        good=st.integers(0, 2),
        priority=st.integers(-1, 1),
    )
    def add(self, worker: int, fate: Fate, good: int, priority: int) -> Any:
        """Asked again until it is heard that it was accepted."""
        self.count += 1
        asked = job(f"job-{self.count}", priority)
        self._bring_about(worker, fate, good=good)
        self.objects.create(asked.folder + "picture", b"x")
        with suppress(StorageUnavailable):
            self.queues[worker].add(asked)
        self._all_is_well(worker)
        assert self.queues[worker].add(asked).folder == asked.folder
        self.known[asked.id] = 0
        return asked.id

    @rule(job_id=jobs, worker=st.integers(0, WORKERS - 1))
    def ask_for_something_else_under_the_same_key(self, job_id: str, worker: int) -> None:
        if job_id in self.known:
            with pytest.raises(Conflict, match="came with another request"):
                self.queues[worker].add(job(job_id, digest="other"))

    @precondition(lambda self: len(self.held) < WORKERS)
    @rule(fate=st.sampled_from(FATES), patient=st.booleans())
    def take(self, fate: Fate, patient: bool) -> None:
        """One that holds nothing takes a job; if it is patient, also from who stands still."""
        self._take(self._idle(), fate, patient)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), fate=st.sampled_from(FATES))
    def go_on(self, data: st.DataObject, fate: Fate) -> None:
        """One that holds a job is still at it."""
        self._work(data.draw(st.sampled_from(sorted(self.held))), fate, "renew")

    @precondition(lambda self: self.held)
    @rule(data=st.data(), fate=st.sampled_from(FATES), what=st.sampled_from(WORK[1:]))
    def end(self, data: st.DataObject, fate: Fate, what: Work) -> None:
        """One that holds a job is done with it."""
        self._work(data.draw(st.sampled_from(sorted(self.held))), fate, what)

    @precondition(lambda self: 0 < len(self.held) < WORKERS)
    @rule(data=st.data(), fate=st.sampled_from(FATES), what=st.sampled_from(WORK))
    def overtake(self, data: st.DataObject, fate: Fate, what: Work) -> None:
        """One stands still until another may have its job, and then goes on with it."""
        slow = data.draw(st.sampled_from(sorted(self.held)))
        self._take(self._idle(), fate, patient=True)
        self._work(slow, fate, what)

    def _idle(self) -> int:
        return next(number for number in range(WORKERS) if number not in self.held)

    def _take(self, worker: int, fate: Fate, patient: bool) -> None:
        other = next((n for n in range(WORKERS) if n not in self.held and n != worker), None)
        before = self._records()
        for wait_s in (0.0, 3 * LEASE_S if patient else 0.0):
            self._wait(wait_s, worker)
            self._bring_about(worker, fate, lambda: None if other is None else self._taken(other))
            with suppress(StorageUnavailable):
                self._taken(worker)
            self._all_is_well(worker)
            if worker in self.held:
                break
        for job_id, record in self._records().items():
            took = record.attempts - before[job_id].attempts
            self.known[job_id] += took
            if took and before[job_id].lease is not None:
                silent = max(clock.rate for clock in self.clocks) * self._silence(before[job_id])
                assert silent > LEASE_S, "taken from one that was not silent for long"

    def _taken(self, worker: int) -> JobRecord | None:
        queue = self.queues[worker]
        taken = queue.take(fresh_s=math.inf) or queue.take()  # as it was seen last, or as it is
        if taken is not None:
            self.held[worker] = taken
        return taken

    def _cancelled(self, worker: int, job_id: str) -> None:
        with suppress(NotFound):  # it was deleted
            self.queues[worker].cancel(job_id)

    def _silence(self, record: JobRecord) -> float:
        """True seconds since a lease was last written, as far as the machine has seen."""
        assert record.lease is not None
        return self.passed - self.beats[record.lease]

    def _work(self, worker: int, fate: Fate, what: Work) -> None:
        """Asked again until it is heard that it is done, or that the lease is lost."""
        mine = self.held[worker]
        before = self._read(mine.id)
        holds = before is not None and not before.ended and _holder(before) == _holder(mine)
        queue = self.queues[worker]
        self._bring_about(worker, fate, lambda: self._cancelled(worker - 1, mine.id))
        holds = holds and fate != "late"  # what is cancelled just before is held no more
        calls: dict[Work, Callable[[], object]] = {
            "renew": lambda: queue.renew(mine, SoFar(50)),
            "complete": lambda: queue.complete(mine, made(f"{worker}-{mine.revision}"), {}),
            "fail": lambda: queue.fail(mine, JobError(code="x", message="y")),
            "give_back": lambda: queue.give_back(mine),
        }
        lost = False
        try:
            try:
                calls[what]()
            except StorageUnavailable:
                calls[what]()
        except LeaseLost:
            # Of what was given back, and nobody heard: it is not its own any more.
            lost = not (what == "give_back" and fate == "unheard" and holds)
        self._all_is_well(worker)
        assert lost == (not holds)
        if what == "renew" and holds:
            renewed = self._read(mine.id)
            assert renewed is not None
            assert renewed.lease is not None
            self.beats[renewed.lease] = self.passed
        if what == "give_back" and holds:
            self.known[mine.id] -= 1
        if lost or what != "renew":
            del self.held[worker]

    def _bring_about(
        self,
        worker: int,
        fate: Fate,
        between: Callable[[], object] = lambda: None,
        good: int = 0,
    ) -> None:
        store = self.stores[worker]
        store.fate, store.between, store.good = fate, between, good

    def _all_is_well(self, worker: int) -> None:
        self.stores[worker].fate, self.stores[worker].good = "good", 0

    @rule(job_id=jobs, worker=st.integers(0, WORKERS - 1), fate=st.sampled_from(FATES))
    def cancel(self, job_id: str, worker: int, fate: Fate) -> None:
        if job_id not in self.known:
            return
        self._bring_about(worker, fate)
        with suppress(StorageUnavailable):
            self.queues[worker].cancel(job_id)
        self._all_is_well(worker)
        assert self.queues[worker].cancel(job_id).ended

    @rule(
        job_id=jobs,
        worker=st.integers(0, WORKERS - 1),
        fate=st.sampled_from(FATES),
        good=st.integers(0, 4),
    )
    def delete(self, job_id: str, worker: int, fate: Fate, good: int) -> None:
        """Asked again until it is heard that it is gone; the other sweeps meanwhile."""
        if job_id not in self.known:
            return
        self._bring_about(worker, fate, lambda: self.queues[worker - 1].sweep(), good)
        with suppress(StorageUnavailable, NotFound):
            self.queues[worker].delete(job_id)
        self._all_is_well(worker)
        with suppress(NotFound):
            self.queues[worker].delete(job_id)
        del self.known[job_id]
        self.ends.pop(job_id, None)
        assert self._read(job_id) is None

    @rule(
        job_id=jobs,
        worker=st.integers(0, WORKERS - 1),
        fate=st.sampled_from(FATES),
        good=st.integers(0, 1),
    )
    def ask_again_for_what_is_gone(self, job_id: str, worker: int, fate: Fate, good: int) -> None:
        """It is another job, of the same id."""
        if job_id in self.known:
            return
        asked = job(job_id)
        self.objects.create(asked.folder + "picture", b"x")
        self._bring_about(worker, fate, good=good)
        with suppress(StorageUnavailable):
            self.queues[worker].add(asked)
        self._all_is_well(worker)
        assert self.queues[worker].add(asked).folder == asked.folder
        self.known[job_id] = 0

    @rule(worker=st.integers(0, WORKERS - 1), seconds=st.sampled_from([1.0, 3 * LEASE_S]))
    def die(self, worker: int, seconds: float) -> None:
        """And come back after a while, with nothing but what is written."""
        self.held.pop(worker, None)
        self.queues[worker] = self._queue(worker)
        self._wait(seconds)

    @rule(
        worker=st.integers(0, WORKERS - 1),
        fate=st.sampled_from(FATES),
        good=st.integers(0, 4),
        data=st.data(),
    )
    def sweep(self, worker: int, fate: Fate, good: int, data: st.DataObject) -> None:
        """The other sweeps meanwhile, too, or somebody deletes a job, and asks for it again."""
        which = data.draw(st.sampled_from([None, *sorted(self.known)]))

        def meanwhile() -> None:
            other = self.queues[worker - 1]
            if which is None:
                other.sweep()
            elif which in self.known:
                other.delete(which)
                self.ends.pop(which, None)
                del self.known[which]
                if data.draw(st.booleans()):
                    other.add(job(which))
                    self.known[which] = 0

        self._bring_about(worker, fate, meanwhile, good)
        with suppress(StorageUnavailable):
            self.queues[worker].sweep()
        self._all_is_well(worker)
        for job_id in list(self.known):
            if self._read(job_id) is None:
                end = self.ends.pop(job_id)
                assert end.ended_at is not None
                assert 1e9 + self.passed >= end.ended_at + KEEP_S
                del self.known[job_id]

    @invariant()
    def nothing_is_lost_and_what_has_ended_stays(self) -> None:
        for job_id, taken in self.known.items():
            record = self._read(job_id)
            assert record is not None, f"{job_id} is lost"
            assert record.attempts == taken <= MOST_ATTEMPTS
            if record.lease is not None:
                self.beats.setdefault(record.lease, self.passed)
            if record.ended:
                assert self.ends.setdefault(job_id, record) == record
            assert record.error != POISONED or record.attempts == MOST_ATTEMPTS

    def teardown(self) -> None:
        """Time passes, and one worker does what is left."""
        if not hasattr(self, "known"):
            return
        queue = self.queues[0]
        for _ in range(2):
            for _ in range(len(self.known) + 1):
                if (mine := queue.take()) is not None:
                    queue.complete(mine, made("last"), {})
            self._wait(4 * LEASE_S, 0)
        while (mine := queue.take()) is not None:
            queue.complete(mine, made("last"), {})
        for job_id in self.known:
            record = self._read(job_id)
            assert record is not None
            assert record.ended, record
            assert self.ends.get(job_id, record) == record
        self._wait(KEEP_S + 1)
        queue.sweep()
        assert list(self.objects.listed("")) == []

    def _wait(self, seconds: float, watching: int | None = None) -> None:
        """Time passes; one worker looks at the jobs meanwhile."""
        for _ in range(STEPS):
            self.passed += seconds / STEPS
            for clock in self.clocks:
                clock.passed += seconds / STEPS
            if watching is not None and seconds:
                self.queues[watching].jobs()

    def _read(self, job_id: str) -> JobRecord | None:
        """What is written: in `jobs/` how it ended, else in `open/` how it stands."""
        accepted = self._raw(f"jobs/{job_id}")
        if accepted is None or accepted.ended:
            return accepted
        opened = self._raw(f"open/{job_id}.{accepted.folder.split('/')[1]}")
        assert opened is not None, f"{job_id} is not seen by who looks for work"
        return opened

    def _raw(self, name: str) -> JobRecord | None:
        stored = self.objects.read(name)
        return None if stored is None else JobRecord.model_validate_json(stored.content)

    def _records(self) -> dict[str, JobRecord]:
        return {job_id: record for job_id in self.known if (record := self._read(job_id))}


def _holder(record: JobRecord) -> str | None:
    return None if record.lease is None else record.lease.holder


class InAFolder(Jobs):
    """The same in a folder of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.objects = FolderObjects(Path(self._folder.name))

    def teardown(self) -> None:
        super().teardown()
        self._folder.cleanup()


def run(machine: type[Jobs], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    )


def test_in_a_folder() -> None:
    run(InAFolder, 75, 40)


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_in_a_folder_at_length() -> None:
    run(InAFolder, 3000, 80)


def test_in_a_bucket(object_store: ObjectStore) -> None:
    number = 0

    class InABucket(Jobs):
        def __init__(self) -> None:
            nonlocal number
            super().__init__()
            number += 1
            self.objects = BucketObjects(object_store.client, BUCKET, f"{number}/")

    run(InABucket, 5, 25)


def test_the_oldest_of_the_highest_priority_goes_first(tmp_path: Path) -> None:
    queue = JobQueue(FolderObjects(tmp_path))
    for job_id, priority, at in (("a", 0, 2.0), ("b", 0, 1.0), ("c", -1, 0.0), ("d", 1, 3.0)):
        queue.add(job(job_id, priority).model_copy(update={"created_at": at}))
    taken = [queue.take() for _ in range(5)]
    assert [one and one.id for one in taken] == ["d", "b", "a", "c", None]


def test_a_job_that_ends_its_workers_fails(tmp_path: Path) -> None:
    clock = Clock(0, 1)
    queue = JobQueue(FolderObjects(tmp_path), LEASE_S, clock)
    queue.add(job("poison"))
    for _ in range(MOST_ATTEMPTS):
        assert queue.take() is not None
        assert queue.take() is None
        for _ in range(4):
            clock.passed += LEASE_S / 4 + 1
            queue.jobs()
    assert queue.take() is None
    record = queue.get("poison")
    assert (record.status, record.error) == ("failed", POISONED)
    with pytest.raises(NotFound, match="job 'other' does not exist"):
        queue.get("other")


def test_while_nobody_could_look_no_lease_grows_old(tmp_path: Path) -> None:
    """The storage was away: the worker that is at it could not renew its lease either."""
    clock = Clock(0, 1)
    store = Unreliable(FolderObjects(tmp_path))
    queue = JobQueue(store, LEASE_S, clock)
    queue.add(job("long"))
    mine = queue.take()
    assert mine is not None
    queue.jobs()
    for _ in range(3):
        clock.passed += 3 * LEASE_S  # the outage
        assert queue.take() is None
        queue.renew(mine, SoFar(10))
    assert queue.get("long").attempts == 1


def test_a_record_that_cannot_be_read_is_told_without_its_prompt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    store = FolderObjects(tmp_path)
    wrong = job("wrong").model_dump() | {
        "kind": "song",
        "weight": "a dragon",
        "request": "a dragon",
    }
    store.create("jobs/wrong", json.dumps(wrong).encode())
    store.create("jobs/torn", b'{"request": {"prompt": "a dragon')
    assert not JobQueue(store).jobs()
    for told in ("'jobs/wrong' of a job", "kind: ", "weight: ", "request: ", "'jobs/torn'", "JSON"):
        assert told in caplog.text
    assert "dragon" not in caplog.text


def test_what_is_no_job_stops_no_other(tmp_path: Path) -> None:
    """A file of another, a record of a later release, and a folder that a console made."""
    store = FolderObjects(tmp_path)
    queue = JobQueue(store)
    queue.add(job("good"))
    store.create("jobs/README.txt", b"not a job")
    store.create("jobs/wrong", b"{}")
    newer = job("newer").model_dump() | {"colour": "red", "kind": "image"}
    store.create("jobs/newer", json.dumps(newer).encode())
    store.create("jobs/newest", json.dumps(newer | {"id": "newest", "kind": "song"}).encode())
    store.create("files/stray", b"x")
    assert {one.id for one in queue.jobs()} == {"good", "newer"}
    assert queue.sweep() == queue.sweep_files() == 0
    ids = set()
    while (mine := queue.take()) is not None:
        ids.add(mine.id)
        queue.complete(mine, (), {})
    assert ids == {"good", "newer"}
    kept = store.read("jobs/newer")
    assert kept is not None
    assert json.loads(kept.content)["colour"] == "red"
    for wrong in ("..", "../files/x", "a/b", "\0", "a" * 300, ""):
        with pytest.raises(NotFound):
            queue.get(wrong)


@pytest.mark.parametrize("kind", ["jobs/", "open/"])
def test_what_cannot_be_read_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    store = FolderObjects(tmp_path)
    queue = JobQueue(store)
    name = f"{kind}newest" + (".files-x" if kind == "open/" else "")
    written = store.create(name, b"{}")

    def told() -> int:
        for _ in range(3):
            queue.open_jobs()
            queue.sweep()
        return sum(name in record.getMessage() for record in caplog.records)

    assert told() == 1
    assert queue.unreadable == 1
    assert written is not None
    assert store.replace(name, b"{", written.tag) is not None
    assert told() == 2, "it is another that cannot be read"
    store.delete(name)
    assert told() == 2
    assert queue.unreadable == 0


def test_a_batch_that_cannot_be_read_keeps_only_its_own_lines(tmp_path: Path) -> None:
    store = FolderObjects(tmp_path)
    queue = JobQueue(store)
    for one in (job("batch", kind="batch"), job("line", batch="batch"), job("other")):
        queue.add(one)
    broken(store, "open/batch.")
    taken = queue.take()
    assert taken is not None
    assert taken.id == "other"
    assert queue.take() is None
    assert queue.get("line").status == "queued"


def test_a_kept_record_that_cannot_be_read_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the job stands in `open/`, only whoever archives it reads what is in `jobs/`."""
    now = [time.time()]
    queue = JobQueue(store := FolderObjects(tmp_path), now=lambda: now[0])
    queue.add(job("a"))
    mine = queue.take()
    assert mine is not None
    queue.complete(mine, (), {})
    broken(store, "jobs/a")
    now[0] += ARCHIVED_S + 1
    for _ in range(3):
        queue.sweep()
    assert sum("jobs/a" in record.getMessage() for record in caplog.records) == 1
    assert queue.unreadable == 1


def broken(store: FolderObjects, prefix: str) -> None:
    """The one object whose name begins so is no record any more."""
    (listed,) = (
        one for one in store.listed(prefix.partition("/")[0] + "/") if one.name.startswith(prefix)
    )
    stored = store.read(listed.name)
    assert stored is not None
    store.replace(listed.name, b"{", stored.tag)


def test_what_is_read_after_all_is_not_counted(tmp_path: Path) -> None:
    store = FolderObjects(tmp_path)
    queue = JobQueue(store)
    JobQueue(store).add(job("a"))
    (listed,) = store.listed("open/")
    stored = store.read(listed.name)
    assert stored is not None
    wrong = store.replace(listed.name, b"{", stored.tag)
    for _ in range(2):
        assert (queue.open_jobs(), queue.unreadable) == ([], 1)
        assert queue.jobs() == [], "how it stood when it was accepted is no news"
    assert wrong is not None
    store.replace(listed.name, stored.content, wrong.tag)
    assert [one.id for one in queue.open_jobs()] == ["a"]
    assert queue.unreadable == 0


def test_a_job_is_forgotten_and_not_the_next_of_its_id(tmp_path: Path) -> None:
    queue = JobQueue(FolderObjects(tmp_path))
    first = queue.add(job("a"))
    queue.delete("a")
    second = queue.add(job("a"))
    queue.forget(first)
    assert queue.get("a") == second
    queue.forget(second)
    queue.forget(second)
    with pytest.raises(NotFound):
        queue.get("a")


class Door:
    """A lock; `came`: one for each who has come to it, also of those who wait."""

    def __init__(self) -> None:
        self.came = list[int]()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.came.append(threading.get_ident())
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize(("look", "lists"), [(JobQueue.open_jobs, 1), (JobQueue.jobs, 2)])
def test_looks_are_shared(
    tmp_path: Path, look: Callable[[JobQueue], Sequence[JobRecord]], lists: int
) -> None:
    """Of many that wait for one that hangs, one looks."""
    store = FolderObjects(tmp_path)
    looks, go = [0], threading.Event()

    class Slow(Unreliable):
        def listed(self, prefix: str) -> Iterator[Listed]:
            looks[0] += 1
            assert go.wait(10)
            return super().listed(prefix)

    queue = JobQueue(Slow(store))
    threads = [threading.Thread(target=look, args=(queue,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert looks[0] <= 20 * lists
    go.clear()
    before = looks[0]
    door = Door()
    shared = queue._looks if lists == 1 else queue._looks_at_all
    shared._calling = door  # type: ignore[assignment]
    threads = [threading.Thread(target=look, args=(queue,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    while looks[0] == before or len(door.came) < 20:
        threading.Event().wait(0.01)
    go.set()
    for thread in threads:
        thread.join()
    assert looks[0] == before + 2 * lists


class Counted(Unreliable):
    """Counts what is asked of it."""

    listed_names = reads = 0

    def listed(self, prefix: str) -> Iterator[Listed]:
        for one in super().listed(prefix):
            self.listed_names += 1
            yield one

    def read(self, name: str) -> Stored | None:
        self.reads += 1
        return super().read(name)


def test_whoever_looks_for_work_is_not_shown_what_has_ended(tmp_path: Path) -> None:
    """However much is kept; by id, and where all are asked for, it is there."""
    now = [1e9]
    store = Counted(FolderObjects(tmp_path))
    queue, others = JobQueue(store, now=lambda: now[0]), JobQueue(FolderObjects(tmp_path))
    for number in range(50):
        queue.add(job(f"ended{number}"))
        mine = queue.take()
        assert mine is not None
        queue.complete(mine, made("x"), {})
    queue.add(job("waits"))
    assert len(others.open_jobs()) == 51
    queue.sweep()
    assert len(others.open_jobs()) == 51  # all see how it ended
    now[0] += ARCHIVED_S
    queue.sweep()
    assert [one.id for one in others.open_jobs()] == ["waits"]
    assert {one.status for one in others.seen()} == {"queued", "completed"}
    queue.open_jobs()
    store.listed_names = store.reads = 0
    mine = queue.take()
    assert mine is not None
    queue.renew(mine, SoFar(10))
    queue.complete(mine, (), {})
    assert (store.listed_names, store.reads) == (1, 0)
    assert queue.get("ended7").results == made("x")
    for anybody in (queue, others, JobQueue(FolderObjects(tmp_path))):
        assert len(anybody.jobs()) == 51
        assert anybody.add(queue.get("ended7")).status == "completed"
    others.delete("ended7")
    assert len(queue.jobs(fresh_s=60.0)) == 51  # as it was known lately
    assert len(queue.jobs()) == 50


def test_a_job_is_shown_until_everybody_was_told(tmp_path: Path) -> None:
    now = [1e9]
    queue = JobQueue(FolderObjects(tmp_path), now=lambda: now[0])
    queue.add(job("a", webhook_url="https://hooks.example/"))
    mine = queue.take()
    assert mine is not None
    queue.complete(mine, (), {})
    for event in ("job.in_progress", "job.completed"):
        now[0] += ARCHIVED_S
        queue.sweep()
        call = queue.take_call()
        assert call is not None
        assert call.untold == event
        queue.sweep()
        queue.end_call(call, event)
    queue.sweep()
    assert queue.open_jobs() == []
    assert queue.get("a").told == ("job.in_progress", "job.completed")


def test_records_of_an_earlier_release_are_found(tmp_path: Path) -> None:
    """That wrote all of them to one place."""
    store = FolderObjects(tmp_path)
    writer = JobQueue(FolderObjects(tmp_path / "elsewhere"))
    waits = writer.add(job("waits"))
    told = writer.add(job("told", webhook_url="https://hooks.example/", status="completed"))
    for one in (waits, told):
        store.create(f"jobs/{one.id}", one.model_dump_json().encode())
    queue, others = JobQueue(store), JobQueue(store)
    assert queue.get("waits") == waits
    assert queue.take() is None
    queue.sweep()
    mine = queue.take()
    assert mine is not None
    others.open_jobs()
    assert [one.status for one in others.seen()] == ["in_progress"]
    assert queue.complete(mine, (), {}).status == "completed"
    call = queue.take_call()
    assert call is not None
    assert call.id == "told"
    others.cancel("waits")
    assert queue.get("waits").status == "completed"


def test_what_is_taken_during_a_look_is_known_after_it(tmp_path: Path) -> None:
    reading, go = threading.Event(), threading.Event()

    class Slow(FolderObjects):
        def read(self, name: str) -> Stored | None:
            if threading.current_thread().name == "looks":
                reading.set()
                assert go.wait(10)
            return super().read(name)

    queue, others = JobQueue(Slow(tmp_path)), JobQueue(FolderObjects(tmp_path))
    others.add(job("a"))
    queue.jobs()
    others.add(job("b"))  # the look has something to read
    looks = threading.Thread(target=queue.jobs, name="looks")
    looks.start()
    assert reading.wait(10)
    taken = queue.take(fresh_s=60.0)
    mine = queue.add(job("c"))
    go.set()
    looks.join()
    assert taken is not None
    seen = {one.id: one for one in queue.seen()}
    assert is_held(seen["a"], taken)
    assert seen["c"] == mine
    assert seen.keys() == {"a", "b", "c"}


@pytest.mark.parametrize("look_s", [0.0, 0.3, 0.6])
def test_a_dead_workers_job_is_taken_however_slow_a_look_is(tmp_path: Path, look_s: float) -> None:
    """With looks as far apart as a configuration may have them."""
    args = JobsArgs(lease_s=4.0, poll_s=1.0)
    clock = Clock(0, 1)

    class Slow(FolderObjects):
        def listed(self, prefix: str) -> Iterator[Listed]:
            clock.passed += look_s
            return super().listed(prefix)

    JobQueue(FolderObjects(tmp_path)).add(job("a"))
    assert JobQueue(FolderObjects(tmp_path)).take() is not None
    queue = JobQueue(Slow(tmp_path), args.lease_s, clock)
    for _ in range(30):
        if (taken := queue.take(fresh_s=args.poll_s)) is not None:
            break
        clock.passed += max(0.01, args.poll_s - queue.age_s)
    assert taken is not None
    assert clock.passed >= args.lease_s


def test_a_look_that_lasts_lets_no_lease_grow_old(tmp_path: Path) -> None:
    clock = Clock(0, 1)

    class Hangs(FolderObjects):
        def listed(self, prefix: str) -> Iterator[Listed]:
            clock.passed += hangs_s
            return super().listed(prefix)

    hangs_s = 0.0
    queue = JobQueue(Hangs(tmp_path), LEASE_S, clock)
    queue.add(job("long"))
    assert queue.take() is not None
    queue.jobs()
    hangs_s = 3 * LEASE_S
    assert queue.take() is None


def test_lines_of_a_batch_that_is_called_off_are_not_begun(tmp_path: Path) -> None:
    queue = JobQueue(FolderObjects(tmp_path))
    queue.add(job("batch").model_copy(update={"kind": "batch"}))
    batch = queue.take()
    assert batch is not None
    for name in "ab":
        queue.add(job(name).model_copy(update={"batch": "batch"}))
    line = queue.take()
    assert line is not None
    queue.call_off("batch")
    assert queue.take() is None
    ends = {one.id: one.status for one in queue.jobs()}
    assert ends == {"batch": "in_progress", line.id: "in_progress"} | {
        name: "cancelled" for name in "ab" if name != line.id
    }
    assert queue.wind_up(batch, {"total": 2}).status == "cancelled"


def test_owners_take_turns(tmp_path: Path) -> None:
    """By weight, however many one has handed in; who waits at a connection goes first."""
    queue = JobQueue(FolderObjects(tmp_path))
    for number in range(6):
        queue.add(job(f"a{number}", owner="alice", created_at=float(number)))
    for number in range(2):
        queue.add(job(f"b{number}", owner="bob", created_at=10.0 + number))
    queue.add(job("c", owner="carol", created_at=20.0, weight=0.1))
    queue.add(job("now", owner="alice", created_at=30.0, awaited=True))
    taken = [one.id for _ in range(10) if (one := queue.take()) is not None]
    assert taken[0] == "now"
    assert taken.index("b0") < taken.index("a1")
    assert taken.index("b1") < taken.index("a3")
    assert len(taken) == 10


def test_lines_of_a_batch_that_has_ended_are_not_begun(tmp_path: Path) -> None:
    queue = JobQueue(FolderObjects(tmp_path))
    queue.add(job("batch", kind="batch"))
    for name in ("one", "two"):
        queue.add(job(name, batch="batch", priority=-10))
    assert [one and one.id for one in (queue.take(), queue.take())] == ["batch", "one"]
    queue.cancel("batch")
    assert queue.take() is None
    assert queue.get("two").status == "cancelled"


def test_above_a_budget_the_oldest_go(tmp_path: Path) -> None:
    now = [1e9]
    store = FolderObjects(tmp_path)
    queue = JobQueue(store, now=lambda: now[0])
    for number in range(4):
        asked = queue.add(job(f"job{number}"))
        store.create(asked.folder + "x", b"x" * 10)
        mine = queue.take()
        assert mine is not None
        queue.complete(mine, made("x", 10), {})
        now[0] += 1
    assert queue.sweep({"video": 0}) == 0
    assert queue.sweep({"image": 25}) == 2
    assert [one.id for one in queue.jobs()] == ["job2", "job3"]
    assert len(list(store.listed("files/"))) == 2


def test_files_of_no_job_go_after_a_day(tmp_path: Path) -> None:
    now = [time.time()]
    store = FolderObjects(tmp_path)
    queue = JobQueue(store, now=lambda: now[0])
    kept = queue.add(job("a"))
    store.create(kept.folder + "x", b"x")
    store.create("files/nobodys/x", b"x")
    assert queue.sweep_files() == 0
    now[0] += ORPHANED_S + 10
    assert queue.sweep_files() == 1
    assert [one.name for one in store.listed("files/")] == [kept.folder + "x"]


def test_files_stay_while_a_record_cannot_be_read(tmp_path: Path) -> None:
    """They may be of a job that a later release has accepted."""
    now = [time.time()]
    store = FolderObjects(tmp_path)
    queue = JobQueue(store, now=lambda: now[0])
    theirs = job("newest")
    store.create("jobs/newest", json.dumps(theirs.model_dump() | {"kind": "song"}).encode())
    store.create(theirs.folder + "x", b"x")
    now[0] += ORPHANED_S + 10
    for _ in range(2):
        assert queue.sweep_files() == 0
    queue.add(job("open"))
    mine = queue.take()
    assert mine is not None
    store.delete("jobs/newest")
    assert queue.sweep_files() == 1
    store.create("files/nobodys/x", b"x")
    broken(store, "open/")
    assert queue.sweep_files() == 0


@pytest.mark.parametrize("budget", [None, 5])
def test_lines_are_kept_as_long_as_their_batch(tmp_path: Path, budget: int | None) -> None:
    """What came of them is its answer, however long it goes on."""
    now = [1e9]
    queue = JobQueue(FolderObjects(tmp_path), now=lambda: now[0])
    budgets: dict[Kind, int] = {} if budget is None else {"image": budget}
    queue.add(job("batch", kind="batch"))
    batch = queue.take()
    assert batch is not None
    for one in (job("line", batch="batch"), job("other")):
        queue.add(one)
        mine = queue.take()
        assert mine is not None
        assert mine.id == one.id
        queue.complete(mine, made("x", 10 if one.id == "line" else 5), {})
    assert queue.sweep(budgets) == 0
    now[0] += KEEP_S
    assert queue.sweep(budgets) == 1
    assert {one.id for one in queue.jobs()} == {"batch", "line"}
    queue.complete(batch, (), {})
    if budget is None:
        now[0] += KEEP_S - 1
        assert queue.sweep(budgets) == 0
        now[0] += 1
        assert queue.sweep(budgets) == 2
    else:
        assert queue.sweep(budgets) == 1
        assert [one.id for one in queue.jobs()] == ["batch"]


def begin_batch_with_line(queue: JobQueue) -> None:
    """A batch that goes on, and a line of it that is done."""
    queue.add(job("batch", kind="batch"))
    assert queue.take() is not None
    queue.add(job("line", batch="batch"))
    mine = queue.take()
    assert mine is not None
    queue.complete(mine, (), {})


def test_lines_of_a_batch_that_is_gone_are_kept_from_their_own_end(tmp_path: Path) -> None:
    now = [1e9]
    queue = JobQueue(FolderObjects(tmp_path), now=lambda: now[0])
    begin_batch_with_line(queue)
    queue.delete("batch")
    now[0] += KEEP_S
    assert queue.sweep() == 1


def test_who_only_looks_for_work_forgets_what_is_over(tmp_path: Path) -> None:
    now, clock = [1e9], Clock(0, 1)
    store = FolderObjects(tmp_path)
    mine, other = JobQueue(store, LEASE_S, clock, lambda: now[0]), JobQueue(store)
    for number in range(3):
        other.add(job(f"job{number}"))
    assert len(mine.open_jobs()) == 3
    for number in range(3):
        other.delete(f"job{number}") if number == 0 else other.cancel(f"job{number}")
    worker = JobQueue(store, now=lambda: time.time() + ARCHIVED_S)
    worker.sweep()
    assert mine.open_jobs() == []
    assert len(mine.seen()) == 2
    now[0] = time.time() + KEEP_S + 1
    clock.passed += DROPPED_S + 1
    assert mine.open_jobs() == []
    assert mine.seen() == []


def test_lines_of_a_batch_that_goes_on_are_seen_for_as_long(tmp_path: Path) -> None:
    now, clock = [1e9], Clock(0, 1)
    queue = JobQueue(FolderObjects(tmp_path), LEASE_S, clock, lambda: now[0])
    begin_batch_with_line(queue)
    now[0] += ARCHIVED_S
    queue.sweep()
    now[0] += 2 * KEEP_S
    clock.passed += DROPPED_S + 1
    queue.open_jobs()
    assert {one.id for one in queue.seen()} == {"batch", "line"}


def test_what_was_written_here_is_not_read_again(tmp_path: Path) -> None:
    reads = list[str]()

    class Counted(FolderObjects):
        def listed(self, prefix: str) -> Iterator[Listed]:
            for one in super().listed(prefix):
                reads.clear() if prefix == "open/" else None  # what the look reads comes after
                yield one

        def read(self, name: str) -> Stored | None:
            reads.append(name)
            return super().read(name)

    queue, other = JobQueue(Counted(tmp_path)), JobQueue(FolderObjects(tmp_path))
    queue.add(job("a"))
    queue.open_jobs()
    assert reads == []
    mine = queue.take()
    assert mine is not None
    mine = queue.renew(mine, SoFar(10))
    queue.open_jobs()
    assert reads == []
    other.call_off("a")
    assert queue.open_jobs()[0].called_off_at is not None
    assert reads != []


def test_a_lease_that_is_renewed_in_time_is_kept(tmp_path: Path) -> None:
    clock = Clock(0, 1)
    mine, others = (JobQueue(FolderObjects(tmp_path), LEASE_S, clock) for _ in range(2))
    mine.add(job("long"))
    taken = mine.take()
    assert taken is not None
    for _ in range(5):
        assert others.take() is None
        clock.passed += LEASE_S - 1
        mine.renew(taken, SoFar(10))
    clock.passed += LEASE_S - 1
    assert others.take() is None
    assert mine.complete(taken, made("a"), {}).status == "completed"


def test_an_answer_that_was_written_and_not_heard_of_is_given_again(tmp_path: Path) -> None:
    store = Unreliable(FolderObjects(tmp_path))
    queue = JobQueue(store)
    queue.add(job("a"))
    taken = queue.take()
    assert taken is not None
    store.fate = "unheard"
    with pytest.raises(StorageUnavailable):
        queue.complete(taken, made("a"), {})
    assert queue.complete(taken, made("a"), {}).results == made("a")
    assert queue.get("a").revision == 2  # written once


def test_a_look_that_missed_a_batch_ends_none_of_its_lines(tmp_path: Path) -> None:
    """It was accepted while the list was read: the lines stand further behind in it."""
    store = FolderObjects(tmp_path)
    others = JobQueue(store)

    class Slow(Unreliable):
        def listed(self, prefix: str) -> Iterator[Listed]:
            for one in super().listed(prefix):
                if "batch" not in one.name:
                    yield one

    others.add(job("batch", kind="batch"))
    batch = others.take()
    others.add(job("line", batch="batch"))
    line = JobQueue(Slow(store)).take()
    assert batch is not None
    assert line is not None
    assert line.id == "line"


def test_a_record_that_cannot_be_read_stops_no_other(tmp_path: Path) -> None:
    now = [1e9]
    store = FolderObjects(tmp_path)
    queue = JobQueue(store, now=lambda: now[0])
    for name in "abc":
        queue.add(job(name))
        mine = queue.take()
        assert mine is not None
        queue.complete(mine, (), {})
    stored = store.read("jobs/a")
    assert stored is not None
    store.replace("jobs/a", b"{}", stored.tag)
    now[0] += ARCHIVED_S
    queue.sweep()
    assert [one.name.split(".")[0] for one in store.listed("open/")] == ["open/a"]
    now[0] += KEEP_S
    assert queue.sweep() == 2
    assert [one.name for one in store.listed("jobs/")] == ["jobs/a"]


def test_a_job_that_was_seen_before_it_was_open_is_not_shown_for_ever(tmp_path: Path) -> None:
    store = Unreliable(FolderObjects(tmp_path))
    now = [1e9]
    first, other = (JobQueue(s, now=lambda: now[0]) for s in (store, store.objects))
    store.good, store.fate = 1, "lost"
    with pytest.raises(StorageUnavailable):
        first.add(job("a"))
    assert [one.id for one in other.jobs()] == ["a"]
    first.sweep()
    mine = first.take()
    assert mine is not None
    first.complete(mine, (), {})
    now[0] += ARCHIVED_S
    first.sweep()
    assert other.open_jobs() == []
    assert [one.status for one in other.seen()] == ["completed"]
