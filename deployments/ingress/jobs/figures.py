"""What is counted of jobs."""

from collections import Counter
from collections.abc import Iterable

from ray.serve import metrics as ray_metrics

from deployments.contracts.figures import JobFigures
from deployments.contracts.usage import KeyJobs
from deployments.exported import Gauges, Total
from deployments.jobs.record import ENDED, JobRecord

LINE = "line"  # of a batch: counted apart from what is asked for by itself
KINDS = ("image", LINE, "video", "batch")
STANDING = ("kind", "status")


def figures_of(jobs: Iterable[JobRecord], now: float) -> JobFigures:
    """How jobs stand. `now`: Unix time."""
    standing: Counter[tuple[str, str]] = Counter()
    kept: Counter[str] = Counter()
    waiting_s: dict[str, float] = {}
    for job in jobs:
        kind = kind_of(job)
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


def kind_of(job: JobRecord) -> str:
    """As which kind a job is counted."""
    return job.kind if job.batch is None else LINE


class JobMetrics:
    """The same as metrics of a worker's node, and what this worker has done."""

    def __init__(self) -> None:
        self._standing = Gauges(
            "tcd_jobs", "jobs that are kept, as each worker sees them", STANDING
        )
        self._waiting = Gauges(
            "tcd_jobs_oldest_queued_seconds", "how long the oldest has waited", ("kind",)
        )
        self._kept = Gauges(
            "tcd_jobs_stored_bytes", "size of their pictures and results", ("kind",)
        )
        self._figures = JobFigures(Counter(), Counter(), {})
        self._skipped = 0
        self._unreadable = ray_metrics.Gauge(
            "tcd_jobs_unreadable", "records that this release cannot read"
        )
        self._is_up: bool | None = None  # it has not been asked yet
        self._up = ray_metrics.Gauge("tcd_jobs_storage_up", "1: the storage of jobs answers")
        self._ended = Total("tcd_jobs_ended", "jobs that this worker has ended", STANDING)
        self._counted = Counter({(kind, end): 0 for kind in KINDS for end in ENDED})
        self._show_ended()

    def show(self, figures: JobFigures, unreadable: int) -> None:
        """How jobs stand now, and how many records cannot be read."""
        self._figures, self._skipped, self._is_up = figures, unreadable, True
        self.again()

    def away(self) -> None:
        """Their storage does not answer."""
        self._is_up = False
        self.again()

    def again(self) -> None:
        """What was shown last."""
        if self._is_up is None:
            return
        figures = self._figures
        self._up.set(int(self._is_up))
        self._unreadable.set(self._skipped)
        self._standing.show(dict(figures.standing.items()))
        self._waiting.show(
            {(kind,): figures.waiting_s.get(kind, 0.0) for kind, _ in figures.standing}
        )
        self._kept.show({(kind,): size for kind, size in figures.kept_bytes.items()})

    def ended(self, job: JobRecord) -> None:
        """A job has ended here."""
        self._counted[kind_of(job), job.status] += 1
        self._show_ended()

    def _show_ended(self) -> None:
        for place, count in self._counted.items():
            self._ended.show(count, dict(zip(STANDING, place, strict=True)))
