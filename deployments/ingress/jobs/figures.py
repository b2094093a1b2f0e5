"""What is counted of jobs."""

from collections import Counter
from collections.abc import Iterable
from typing import cast

from ray.serve import metrics as ray_metrics

from deployments.contracts.figures import JobFigures
from deployments.contracts.usage import KeyJobs
from deployments.jobs.record import JobRecord

LINE = "line"  # of a batch: counted apart from what is asked for by itself


def figures_of(jobs: Iterable[JobRecord], now: float) -> JobFigures:
    """How jobs stand. `now`: Unix time."""
    standing: Counter[tuple[str, str]] = Counter()
    kept: Counter[str] = Counter()
    waiting_s: dict[str, float] = {}
    for job in jobs:
        kind = job.kind if job.batch is None else LINE
        standing[kind, job.status] += 1
        kept[kind] += job.size
        if job.status == "queued":
            waiting_s[kind] = max(waiting_s.get(kind, 0.0), now - job.created_at)
    return JobFigures(standing, kept, waiting_s)


def by_owner(jobs: Iterable[JobRecord]) -> dict[str, KeyJobs]:
    """What is kept for each key."""
    found: dict[str, KeyJobs] = {}
    for job in jobs:
        of_key = found.setdefault(job.owner, KeyJobs())
        of_key.unfinished += not job.ended
        of_key.kept_bytes += job.size
    return found


class JobGauges:
    """The same as metrics of a worker's node."""

    def __init__(self) -> None:
        self._standing = ray_metrics.Gauge(
            "tcd_jobs",
            "jobs that are kept, as each worker sees them",
            cast(tuple[str], ("kind", "status")),  # Ray's annotation allows one key only
        )
        self._waiting = ray_metrics.Gauge(
            "tcd_jobs_oldest_queued_seconds", "how long the oldest has waited", ("kind",)
        )
        self._shown: set[tuple[str, str]] = set()

    def show(self, figures: JobFigures) -> None:
        """How jobs stand now."""
        self._shown |= figures.standing.keys()
        for kind, status in self._shown:
            count = figures.standing.get((kind, status), 0)
            self._standing.set(count, {"kind": kind, "status": status})
        for kind in {kind for kind, _ in self._shown}:
            self._waiting.set(figures.waiting_s.get(kind, 0.0), {"kind": kind})
