"""The jobs of a service, in whatever keeps its objects: taken by one worker at a time, answered
once.

Each change is one conditional write of the job's record: what was read is written anew only if
nobody has written it since. A worker that stood still finds its lease taken, and what it made does
not count.
"""

import time
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple
from uuid import uuid4

from deployments.contracts.errors import InvalidRequest, NotFound
from deployments.jobs.objects import Objects
from deployments.jobs.record import JobError, JobRecord, Lease

FOLDER = "jobs/"
MOST_ATTEMPTS = 3
POISONED = JobError(
    code="attempts_exhausted",
    message=f"{MOST_ATTEMPTS} workers went away while they worked on it: it may be what ends them",
)


class LeaseLost(Exception):
    """The job is another worker's now, has ended, or is gone: what was made of it does not
    count."""


class _Found(NamedTuple):
    record: JobRecord
    tag: str


class _Seen(NamedTuple):
    """A lease, and when it was first seen like this."""

    lease: Lease
    since: float


class JobQueue:
    """One process's view of the jobs. One thread at a time.

    Every method raises `StorageUnavailable` if the storage does not answer; each may be called
    again then, with what it was called with.

    Args:
        lease_s: how long a worker may be silent: it renews its lease several times as often.
        clock: of this process alone, in seconds; it need not agree with any other.
        now: Unix time, for people to read, and for what expires.
    """

    def __init__(
        self,
        objects: Objects,
        lease_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._objects = objects
        self._lease_s = lease_s
        self._clock = clock
        self._now = now
        self._seen: dict[str, _Seen] = {}
        self._ended: set[str] = set()  # they stay so: not read again when there is work to find

    def add(self, job: JobRecord) -> JobRecord:
        """Accepts a job: from here on it is never lost. If there is one of its id already, that is
        the same job, asked for again. Raises `InvalidRequest` if it was another request."""
        if self._objects.create(_name(job.id), _text(job)) is not None:
            return job
        known = self.get(job.id)
        if known.digest != job.digest:
            raise InvalidRequest(
                "this Idempotency-Key came with another request before", "idempotency-key"
            )
        return known

    def get(self, job_id: str) -> JobRecord:
        """A job. Raises `NotFound`."""
        return self._read(job_id).record

    def take(self) -> JobRecord | None:
        """A job to work on: of the highest priority, the oldest that waits or whose worker is
        silent. `None`: there is none. One that was taken too often before fails instead."""
        for found in sorted(self._open(), key=lambda one: _turn(one.record)):
            record = found.record
            if not self._is_free(record):
                continue
            if record.cancelled_by_caller:
                self._put(found, self._ending(record, status="cancelled", lease=None))
            elif record.attempts >= MOST_ATTEMPTS:
                self._put(found, self._ending(record, status="failed", error=POISONED, lease=None))
            else:
                taken = record.changed(
                    status="in_progress",
                    attempts=record.attempts + 1,
                    lease=Lease(holder=uuid4().hex),
                    progress=0,
                )
                if self._put(found, taken):
                    return taken
        return None

    def renew(self, job: JobRecord, progress: int) -> JobRecord:
        """Keeps a job that was taken, and says how far it is, in per cent; whoever works on it
        stops if it is `cancelled_by_caller` by now. Raises `LeaseLost`."""

        def beaten(record: JobRecord) -> JobRecord:
            lease = _held(record, job)
            return record.changed(
                lease=lease.model_copy(update={"beat": lease.beat + 1}), progress=progress
            )

        return self._change(job.id, beaten)

    def give_back(self, job: JobRecord) -> None:
        """Another worker may take it at once: this one is told to go. Raises `LeaseLost`."""

        def waiting(record: JobRecord) -> JobRecord:
            _held(record, job)
            return record.changed(
                status="queued", lease=None, attempts=record.attempts - 1, progress=0
            )

        self._change(job.id, waiting)

    def complete(self, job: JobRecord, results: tuple[str, ...]) -> JobRecord:
        """Answers a job that was taken, with the names of objects. Raises `LeaseLost`."""
        return self._finish(job, status="completed", results=results, progress=100)

    def fail(self, job: JobRecord, error: JobError) -> JobRecord:
        """The same for a job that cannot be done."""
        return self._finish(job, status="failed", error=error)

    def stop(self, job: JobRecord) -> JobRecord:
        """The same for a job that its caller has cancelled."""
        return self._finish(job, status="cancelled")

    def cancel(self, job_id: str) -> JobRecord:
        """Has a job stopped, if it has not ended: at once if nobody works on it. Raises
        `NotFound`."""

        def stopped(record: JobRecord) -> JobRecord:
            if record.ended or record.cancelled_by_caller:
                return record
            if record.status == "queued":
                return self._ending(record, status="cancelled")
            return record.changed(cancelled_by_caller=True)

        return self._change(job_id, stopped)

    def sweep(self) -> int:
        """Forgets the jobs whose time is over, with their results. Returns how many."""
        forgotten = 0
        for record, _ in self._kept():
            if record.ended_at is None or self._now() < record.ended_at + record.keep_s:
                continue
            for result in record.results:
                self._objects.delete(result)
            self._objects.delete(_name(record.id))
            self._ended.discard(record.id)
            forgotten += 1
        return forgotten

    def _finish(self, job: JobRecord, **fields: object) -> JobRecord:
        def ended(record: JobRecord) -> JobRecord:
            if record.ended and _lease(job, record) is not None:
                return record  # it was answered, and whoever did so did not hear of it
            _held(record, job)
            return self._ending(record, **fields)

        return self._change(job.id, ended)

    def _ending(self, record: JobRecord, **fields: object) -> JobRecord:
        return record.changed(ended_at=self._now(), **fields)

    def _is_free(self, record: JobRecord) -> bool:
        """Whether nobody works on it: it waits, or its lease has not moved for too long."""
        lease = record.lease
        if lease is None:
            return True
        seen = self._seen.get(record.id)
        if seen is None or seen.lease != lease:
            self._seen[record.id] = _Seen(lease, self._clock())
            return False
        return self._clock() - seen.since > self._lease_s

    def _open(self) -> Iterator[_Found]:
        """The jobs that have not ended."""
        for found in self._kept(but=self._ended):
            if found.record.ended:
                self._ended.add(found.record.id)
                self._seen.pop(found.record.id, None)
            else:
                yield found

    def _kept(self, but: Collection[str] = ()) -> Iterator[_Found]:
        """All jobs, but for those of these ids, which are not read."""
        for name in self._objects.names(FOLDER):
            job_id = name.removeprefix(FOLDER)
            if job_id in but:
                continue
            try:
                found = self._read(job_id)
            except NotFound:
                continue  # it has been swept since
            yield found

    def _change(self, job_id: str, change: Callable[[JobRecord], JobRecord]) -> JobRecord:
        """Writes what `change` makes of a job, as often as others write between."""
        while True:
            found = self._read(job_id)
            changed = change(found.record)
            if changed is found.record or self._put(found, changed):
                return changed

    def _read(self, job_id: str) -> _Found:
        stored = self._objects.read(_name(job_id))
        if stored is None:
            raise NotFound(f"job {job_id!r} does not exist", "job_id")
        return _Found(JobRecord.model_validate_json(stored.content), stored.tag)

    def _put(self, found: _Found, record: JobRecord) -> bool:
        return self._objects.replace(_name(record.id), _text(record), found.tag) is not None


def _held(record: JobRecord, job: JobRecord) -> Lease:
    """The lease of a job, if it is the one that it was taken with. Raises `LeaseLost`."""
    lease = _lease(job, record)
    if lease is None or record.ended:
        raise LeaseLost(job.id)
    return lease


def _lease(job: JobRecord, record: JobRecord) -> Lease | None:
    """A record's lease, if it is of the same taking as the job's."""
    mine, theirs = job.lease, record.lease
    if mine is None or theirs is None or mine.holder != theirs.holder:
        return None
    return theirs


def _turn(job: JobRecord) -> tuple[int, float, str]:
    return -job.priority, job.created_at, job.id


def _name(job_id: str) -> str:
    return FOLDER + job_id


def _text(job: JobRecord) -> bytes:
    return job.model_dump_json().encode()
