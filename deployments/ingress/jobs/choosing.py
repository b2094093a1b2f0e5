"""Which jobs a worker takes beside those that it has."""

from collections import Counter
from collections.abc import Callable, Iterable
from random import SystemRandom
from time import monotonic

from deployments.contracts.jobs import BACKGROUND
from deployments.jobs.queue import has_last_chance
from deployments.jobs.record import JobRecord

LAST_CHANCE_S = (15.0, 60.0)  # that a busy worker leaves to others who may be idle by then


class Choosing:
    """Batches compute nothing, and wait for no other; of the background there is little at a time.

    A job that has its last chance has a worker alone: if that goes away once more, it is the job,
    and nobody beside it is blamed. Who is idle takes it; only if nobody was for a while does one
    who is busy take no others for it.

    Args:
        at_once: jobs at a time; `batch_at_once`: of the background, beside them.
        clock: seconds.
    """

    def __init__(
        self, at_once: int, batch_at_once: int, clock: Callable[[], float] = monotonic
    ) -> None:
        self._most = {"job": at_once, "line": batch_at_once}
        self._clock = clock
        self._patience_s = SystemRandom().uniform(*LAST_CHANCE_S)
        self._has: dict[str, JobRecord] = {}
        self._waiting: dict[str, float] = {}  # last chances: since when, as the last look saw
        self._seen: dict[str, float] = {}  # the same of this one

    def begin(self, jobs: Iterable[JobRecord]) -> None:
        """A look at what waits begins. `jobs`: those that the worker has."""
        self._has = {job.id: job for job in jobs}
        self._seen = {}

    def may_take(self, job: JobRecord) -> bool:
        """Whether there is room for a job. Asked of each that waits, again after one is taken."""
        if job.id in self._has:
            return False
        if job.kind == "batch":
            return True
        rooms = Counter(map(room_of, self._has.values()))
        busy = rooms["job"] + rooms["line"]
        if has_last_chance(job):
            self._seen[job.id] = self._waiting.get(job.id, self._clock())
            return not busy
        if self._is_kept_free():
            return False
        return rooms[room_of(job)] < self._most[room_of(job)]

    def taken(self, job: JobRecord) -> None:
        """The worker has a job more."""
        self._has[job.id] = job

    def end(self) -> None:
        """The look is over: nothing else waits."""
        self._waiting = self._seen

    def _is_kept_free(self) -> bool:
        """Whether it does a last chance, or one has waited for too long."""
        latest = self._clock() - self._patience_s
        return any(has_last_chance(job, taken=True) for job in self._has.values()) or any(
            since < latest for since in self._waiting.values()
        )


def room_of(job: JobRecord) -> str:
    """Beside which others a job is counted."""
    if job.kind == "batch":
        return "batch"
    return "line" if job.priority == BACKGROUND else "job"
