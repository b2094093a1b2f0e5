"""A job as it is kept: what was asked, for whom, how it stands and what came of it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

Kind = Literal["image", "video"]
Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
ENDED: tuple[Status, ...] = ("completed", "failed", "cancelled")


class Kept(BaseModel):
    """Of what is kept: never changed, only written anew."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Lease(Kept):
    """Who works on a job.

    Attributes:
        holder: unique to this taking of the job, not to the worker.
        beat: how often it was renewed. Whoever sees the same beat for as long as a lease lasts, on
            a clock of his own, may take the job: no two clocks are ever compared.
    """

    holder: str
    beat: int = 0


class JobError(Kept):
    """Why a job failed."""

    code: str
    message: str


class JobRecord(Kept):
    """One job.

    Attributes:
        revision: writes so far: no two of a job are equal.
        owner: name of the key that it was asked with.
        digest: of what was asked, to tell another request with the same idempotency key.
        request: what was asked; its pictures are names of objects.
        priority: higher goes first.
        created_at, ended_at: Unix time, for people; nothing is decided by it but expiry.
        keep_s: from its end until it is forgotten.
        attempts: how often it was taken.
        progress: per cent.
        cancelled_by_caller: its worker is to stop it.
        results: names of objects.
    """

    id: str
    kind: Kind
    owner: str
    digest: str
    request: dict[str, JsonValue]
    created_at: float
    priority: int = 0
    keep_s: float = 86_400.0
    revision: int = 0
    status: Status = "queued"
    attempts: int = 0
    lease: Lease | None = None
    progress: int = 0
    cancelled_by_caller: bool = False
    results: tuple[str, ...] = ()
    error: JobError | None = None
    ended_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it is completed, failed or cancelled."""
        return self.status in ENDED

    def changed(self, **fields: object) -> "JobRecord":
        """The next revision."""
        return self.model_copy(update={**fields, "revision": self.revision + 1})
