"""The jobs of a service, in whatever keeps its objects: taken by one worker at a time, answered
once.

Each change is one conditional write of the job's record: what was read is written anew only if
nobody has written it since. A worker that stood still finds its lease taken, and what it made does
not count.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import uuid4

from pydantic import JsonValue

from deployments.contracts.errors import Conflict, NotFound
from deployments.jobs.objects import Objects
from deployments.jobs.record import NOT_BEGUN, JobError, JobFile, JobRecord, Kind, Lease, SoFar
from deployments.jobs.records import FILES, ID, Found, Records, Unreadable, is_settled
from deployments.jobs.shared import Shared

MOST_ATTEMPTS = 3
MOST_OF_BATCH = 100  # a batch lasts for hours, and goes on where it was
POISONED = JobError(
    code="attempts_exhausted",
    message=f"{MOST_ATTEMPTS} workers went away while they worked on it: it may be what ends them",
)
CALL = "call of "  # before a job's id: what is seen of who tells of it
ORPHANED_S = 86_400.0  # files whose job nobody has accepted by then are of none
DROPPED_S = 300.0  # between two times that a process forgets what nobody is shown any more
ARCHIVED_S = 60.0  # from a job's end: until then whoever looks sees how it ended
log = logging.getLogger("ray.serve.tcd.jobs")


class LeaseLost(Exception):
    """The job is another worker's now, has ended, or is gone: what was made of it does not
    count."""


class _Seen(NamedTuple):
    """A lease, and when it was first seen like this."""

    lease: Lease
    since: float


class JobQueue:
    """One process's view of the jobs, from any of its threads.

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
        self._records = Records(objects)
        self._lease_s = lease_s
        self._clock = clock
        self._now = now
        self._seen: dict[str, _Seen] = {}
        self._looks = Shared(self._look)
        self._looks_at_all = Shared(self._look_at_all)
        self._looked_at = clock()
        self._looked_at_all = -math.inf
        self._dropped_at = clock()

    @property
    def age_s(self) -> float:
        """How long ago the jobs were looked at."""
        return self._clock() - self._looked_at

    def add(self, job: JobRecord) -> JobRecord:
        """Accepts a job: from here on it is never lost. If there is one of its id already, that is
        the same job, asked for again. Raises `Conflict` if it was another request."""
        known = self._records.add(job)
        if known is None:
            return job
        same(known.record, job.digest)
        self._records.open(known)
        return known.record

    def get(self, job_id: str) -> JobRecord:
        """A job. Raises `NotFound`."""
        found = self._find(job_id)
        if found is None:
            raise NotFound(f"job {job_id!r} does not exist", "job_id")
        return found.record

    def jobs(self, fresh_s: float = 0.0) -> Sequence[JobRecord]:
        """All jobs, the oldest first.

        Args:
            fresh_s: what others have forgotten within so many seconds may be among them. Looking
                for that costs a list of all jobs, else of the open ones.
        """
        old = self._clock() - self._looked_at_all >= fresh_s
        (self._looks_at_all if old else self._looks).run()
        return _oldest_first(self._records.seen())

    def open_jobs(self) -> Sequence[JobRecord]:
        """The jobs that have not ended, and those that have lately, the oldest first."""
        self._looks.run()
        return _oldest_first(self._records.seen_open())

    def seen(self) -> Sequence[JobRecord]:
        """All jobs, as the last look has shown them."""
        return [found.record for found in self._records.seen()]

    @property
    def unreadable(self) -> int:
        """How many records the last looks could not read."""
        return self._records.unreadable

    def seen_open(self) -> Sequence[JobRecord]:
        """Of these, the jobs that have not ended, and those that have lately."""
        return [found.record for found in self._records.seen_open()]

    def take(
        self, may: Callable[[JobRecord], bool] = lambda _: True, fresh_s: float = 0.0
    ) -> JobRecord | None:
        """A job to work on, of those that `may` be: `None`, if there is none. One that was taken
        too often before fails instead, and one whose batch has ended, or was called off, is
        cancelled.

        Args:
            fresh_s: looks at the jobs first if the last look is older, in seconds.
        """
        if self.age_s >= fresh_s:
            self._looks.run()
        every = self._records.seen_open()
        jobs = {found.record.id: found for found in every if not found.record.ended}
        for record in in_turn([found.record for found in jobs.values()]):
            found = jobs[record.id]
            if not self._is_free(record) or not may(record):
                continue
            try:
                over = record.batch is not None and self._is_over(jobs, record.batch)
            except Unreadable:
                continue  # its batch is of a later release: who can read that takes it
            if over:
                self._records.put(found, self._ending(record, status="cancelled", lease=None))
                continue
            most = MOST_OF_BATCH if record.kind == "batch" else MOST_ATTEMPTS
            if record.attempts >= most:
                self._records.put(
                    found, self._ending(record, status="failed", error=POISONED, lease=None)
                )
                continue
            taken = record.changed(
                status="in_progress",
                attempts=record.attempts + 1,
                lease=Lease(holder=uuid4().hex),
                started_at=self._now(),
                **vars(NOT_BEGUN),
            )
            if self._records.put(found, taken):
                return taken
        return None

    def renew(self, job: JobRecord, so_far: SoFar) -> JobRecord:
        """Keeps a job that was taken, and says how far it is. Raises `LeaseLost`."""

        def beaten(record: JobRecord) -> JobRecord:
            lease = _held(record, job)
            return record.changed(
                lease=lease.model_copy(update={"beat": lease.beat + 1}), **vars(so_far)
            )

        return self._change_held(job, beaten)

    def give_back(self, job: JobRecord) -> None:
        """Another worker may take it at once: this one is told to go. Raises `LeaseLost`."""

        def waiting(record: JobRecord) -> JobRecord:
            _held(record, job)
            return record.changed(
                status="queued",
                lease=None,
                attempts=record.attempts - 1,
                started_at=None,
                **vars(NOT_BEGUN),
            )

        self._change_held(job, waiting)

    def complete(
        self, job: JobRecord, results: tuple[JobFile, ...], outcome: Mapping[str, JsonValue]
    ) -> JobRecord:
        """Answers a job that was taken. Raises `LeaseLost`."""
        return self._finish(
            job, status="completed", results=results, outcome=dict(outcome), progress=100
        )

    def wind_up(self, job: JobRecord, outcome: Mapping[str, JsonValue]) -> JobRecord:
        """The same for a batch that was called off: it is cancelled, with what there is of it."""
        return self._finish(job, status="cancelled", outcome=dict(outcome))

    def fail(self, job: JobRecord, error: JobError) -> JobRecord:
        """The same for a job that cannot be done."""
        return self._finish(job, status="failed", error=error)

    def take_call(self, but: Collection[str] = ()) -> JobRecord | None:
        """A job, none of these, of which somebody is to be told; nobody else tells it now. `None`:
        there is none, as far as the last look at the jobs has shown."""
        for found in sorted(
            self._records.seen_open(), key=lambda found: found.record.ended_at or 0.0
        ):
            record = found.record
            if record.untold is None or record.id in but:
                continue
            if not self._is_silent(CALL + record.id, record.call):
                continue
            taken = record.changed(call=Lease(holder=uuid4().hex))
            if self._records.put(found, taken):
                return taken
        return None

    def end_call(self, job: JobRecord, told: str | None) -> None:
        """Gives back what `take_call` gave: the event was delivered, or (`None`) it was not."""

        def ended(record: JobRecord) -> JobRecord:
            if record.call != job.call:
                return record
            events = record.told if told is None else (*record.told, told)
            return record.changed(told=events, call=None)

        with suppress(NotFound):
            self._change(job.id, ended)

    def cancel(self, job_id: str) -> JobRecord:
        """Ends a job, if it has not ended: whoever works on it has lost it. Raises `NotFound`."""

        def stopped(record: JobRecord) -> JobRecord:
            return record if record.ended else self._ending(record, status="cancelled")

        return self._change(job_id, stopped)

    def call_off(self, job_id: str) -> JobRecord:
        """Has a batch ended by whoever does it, if it has not ended. Raises `NotFound`."""

        def called_off(record: JobRecord) -> JobRecord:
            if record.ended or record.called_off_at is not None:
                return record
            return record.changed(called_off_at=self._now())

        return self._change(job_id, called_off)

    def delete(self, job_id: str) -> None:
        """Forgets a job, with all its files, whether it has ended or not. Raises `NotFound`."""
        self.cancel(job_id)
        found = self._find(job_id)
        if found is not None:
            self._records.forget(found)

    def forget(self, job: JobRecord) -> None:
        """Forgets this job, with all its files, but no other that has its id by now."""
        found = self._find(job.id)
        if found is not None and found.record.folder == job.folder:
            self._records.forget(found)

    def sweep(self, budgets: Mapping[Kind, int] | None = None) -> int:
        """Forgets the jobs whose time is over, and the oldest of those that have ended while their
        kind's take more bytes than its budget. Returns how many."""
        self._looks_at_all.run()
        over = self._over()
        left = Counter[str]()
        for _, found in over:
            left[found.record.kind] += found.record.size
        forgotten = 0
        for since, found in over:
            record = found.record
            budget = (budgets or {}).get(record.kind)
            above = budget is not None and left[record.kind] > budget
            if above or since + record.keep_s <= self._now():
                forgotten += self._is_done(self._records.forget, found)
                left[record.kind] -= record.size
        self._archive()
        return forgotten

    def _over(self) -> Sequence[tuple[float, Found]]:
        """The jobs that may be forgotten, and since when, the oldest first. What came of a batch's
        lines is its answer: they are kept from its end, as it is."""
        seen = self._records.seen()
        batches = {
            found.record.id: found.record.ended_at for found in seen if found.record.kind == "batch"
        }
        over = list[tuple[float, Found]]()
        for found in seen:
            ended_at = found.record.ended_at
            since = batches.get(found.record.batch or "", ended_at)
            if ended_at is not None and since is not None:
                over.append((max(ended_at, since), found))
        return sorted(over, key=lambda one: one[0])

    def _archive(self) -> None:
        """Whoever looks for work is shown no longer what has ended a while ago."""
        ripe = [
            found
            for found in self._records.seen_open()
            if is_settled(found.record)
            and (found.record.ended_at or 0.0) + ARCHIVED_S <= self._now()
        ]
        for found in [*ripe, *self._records.seen_strays()]:
            self._is_done(self._records.archive, found)

    def _is_done(self, change: Callable[[Found], None], found: Found) -> bool:
        """A job of which a record cannot be read stops no other."""
        try:
            change(found)
        except Unreadable as error:
            self._records.note(error)
            return False
        return True

    def sweep_files(self) -> int:
        """Removes files of jobs that were never accepted, or that went while they were made.
        Returns how many."""
        files = list(self._objects.listed(FILES))
        self._looks_at_all.run()  # after: none is accepted between
        if self.unreadable:
            return 0  # they may be of jobs that a later release has written
        folders = {found.record.folder for found in self._records.seen()}
        removed = 0
        for file in files:
            if _folder(file.name) not in folders and self._now() > file.changed_at + ORPHANED_S:
                self._objects.delete(file.name)
                removed += 1
        return removed

    def clear(self, job: JobRecord) -> None:
        """Removes what was made for a job that has been forgotten meanwhile."""
        found = self._find(job.id)
        if found is None or found.record.folder != job.folder:
            self._records.remove_files(job.folder)

    def _finish(self, job: JobRecord, **fields: object) -> JobRecord:
        def ended(record: JobRecord) -> JobRecord:
            if record.ended and record.status == fields["status"] and _same_lease(record, job):
                return record  # it was answered, and whoever did so did not hear of it
            _held(record, job)
            return self._ending(record, **fields)

        return self._change_held(job, ended)

    def _ending(self, record: JobRecord, **fields: object) -> JobRecord:
        return record.changed(ended_at=self._now(), **fields)

    def _is_free(self, record: JobRecord) -> bool:
        """Whether nobody works on it: it waits, or its lease has not moved for too long."""
        return self._is_silent(record.id, record.lease)

    def _is_silent(self, what: str, lease: Lease | None) -> bool:
        if lease is None:
            return True
        seen = self._seen.get(what)
        if seen is None or seen.lease != lease:
            self._seen[what] = _Seen(lease, self._clock())
            return False
        return self._clock() - seen.since > self._lease_s

    def _look(self) -> None:
        """Reads what was written of open jobs since the last look."""
        began = self._clock()
        self._records.look()
        self._note_look(began)
        if began - self._dropped_at > DROPPED_S:
            self._dropped_at = began
            now = self._now()
            self._records.drop(f for since, f in self._over() if since + f.record.keep_s < now)

    def _look_at_all(self) -> None:
        began = self._clock()
        self._looks.run()
        self._records.look_at_all()
        self._looked_at_all = began

    def _note_look(self, began: float) -> None:
        """While nobody could look, or a look lasted, nobody could renew a lease either: their time
        begins anew."""
        now = self._clock()
        blind = max(began - self._looked_at, now - began) > self._lease_s / 3
        open_ids = {found.record.id for found in self._records.seen_open()}
        for what in list(self._seen):
            if blind or what.removeprefix(CALL) not in open_ids:
                del self._seen[what]
        self._looked_at = now

    def _change_held(self, job: JobRecord, change: Callable[[JobRecord], JobRecord]) -> JobRecord:
        """Changes a job that was taken here. As it was known last it mostly stands still; if not,
        nothing is written, and it is read."""
        known = self._records.known(job)
        if known is not None and is_held(known.record, job):
            changed = change(known.record)
            if self._records.put(known, changed):
                return changed
        try:
            return self._change(job.id, change)
        except NotFound:
            raise LeaseLost(job.id) from None

    def _change(self, job_id: str, change: Callable[[JobRecord], JobRecord]) -> JobRecord:
        """Writes what `change` makes of a job, as often as others write between."""
        while True:
            found = self._find(job_id)
            if found is None:
                raise NotFound(f"job {job_id!r} does not exist", "job_id")
            changed = change(found.record)
            if changed is found.record or self._records.put(found, changed):
                return changed

    def _is_over(self, jobs: Mapping[str, Found], batch: str) -> bool:
        """Whether the lines of a batch are not to be begun any more. A look that lasts may have
        missed one that was accepted meanwhile."""
        found = jobs.get(batch) or self._find(batch)
        return found is None or found.record.ended or found.record.called_off_at is not None

    def _find(self, job_id: str) -> Found | None:
        return self._records.find(job_id) if ID.fullmatch(job_id) else None


def _oldest_first(jobs: Sequence[Found]) -> Sequence[JobRecord]:
    records = [found.record for found in jobs]
    return sorted(records, key=lambda record: (record.created_at, record.id))


def is_held(record: JobRecord, job: JobRecord) -> bool:
    """Whether a job, as it stands, is still of whoever took it."""
    return not record.ended and _same_lease(record, job)


def has_last_chance(job: JobRecord, taken: bool = False) -> bool:
    """Whether a job that waits, or that was `taken`, fails if one more worker goes away over it."""
    return job.kind != "batch" and job.attempts >= MOST_ATTEMPTS - (not taken)


def same(known: JobRecord, digest: str) -> JobRecord:
    """A job that is asked for again. Raises `Conflict` if it was another request."""
    if known.digest != digest:
        raise Conflict("this Idempotency-Key came with another request before", "idempotency-key")
    return known


def in_turn(jobs: Sequence[JobRecord]) -> Sequence[JobRecord]:
    """Jobs that have not ended, in the order in which they are to be taken: of the highest
    priority; somebody waits for its answer; of the owner who has least in the making for its
    weight; the oldest."""
    places = Counter[str]()
    for job in jobs:
        places[job.owner] += job.lease is not None
    shares: dict[str, float] = {}
    for job in sorted(jobs, key=lambda job: (job.created_at, job.id)):
        if job.lease is None:
            shares[job.id] = places[job.owner] / job.weight
            places[job.owner] += 1

    def turn(job: JobRecord) -> tuple[int, bool, float, float, str]:
        return -job.priority, not job.awaited, shares.get(job.id, 0.0), job.created_at, job.id

    return sorted(jobs, key=turn)


def _held(record: JobRecord, job: JobRecord) -> Lease:
    """The lease of a job, if it is the one that it was taken with. Raises `LeaseLost`."""
    if record.lease is None or not is_held(record, job):
        raise LeaseLost(job.id)
    return record.lease


def _same_lease(record: JobRecord, job: JobRecord) -> bool:
    """Whether a record's lease is of the same taking as the job's."""
    mine, theirs = job.lease, record.lease
    return mine is not None and theirs is not None and mine.holder == theirs.holder


def _folder(file: str) -> str:
    return FILES + file.removeprefix(FILES).partition("/")[0] + "/"
