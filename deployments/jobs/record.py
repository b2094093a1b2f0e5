"""A job as it is kept: what was asked, for whom, how it stands and what came of it."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from deployments.contracts.jobs import Caller

Kind = Literal["image", "video", "batch", "file"]
Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
ENDED: tuple[Status, ...] = ("completed", "failed", "cancelled")


class Kept(BaseModel):
    """Of what is kept: never changed, only written anew. What another release has written beside
    is kept, too."""

    model_config = ConfigDict(frozen=True, extra="allow")


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
    """Why a job failed. `param`: the field of the request that is to blame."""

    code: str
    message: str
    param: str | None = None


class JobFile(Kept):
    """A file of a job.

    Attributes:
        name: below the job's `folder`; nobody can guess it.
        role: which of the job's files it is, such as "video", or "0" of several images.
        size: bytes.
    """

    name: str
    role: str
    media_type: str
    size: int


@dataclass(frozen=True)
class SoFar:
    """How far a job is.

    Attributes:
        progress: per cent.
        previews: files that show it.
        refused: of a batch, how many of its lines were refused, and are no jobs.
    """

    progress: int
    previews: tuple[JobFile, ...] = ()
    refused: int = 0


NOT_BEGUN = SoFar(0)


class JobRecord(Kept):
    """One job.

    Attributes:
        revision: writes so far: no two of a job are equal.
        owner: name of the key that it was asked with; `weight`: that key's.
        digest: of what was asked, to tell another request with the same idempotency key.
        request: what was asked; its pictures are files in `folder`.
        folder: of all its files: the prefix of their objects' names, this job's alone.
        pictures_size: bytes of the request's pictures.
        webhook_url: who is told what becomes of it; `base_url`: of the service, as the request
            named it.
        told: the events that were delivered; `call`: of who delivers the next one.
        awaited: somebody waits at an open connection.
        priority: higher goes first.
        created_at, started_at, ended_at: Unix time, for people; nothing is decided by it but
            expiry.
        keep_s: from its end until it is forgotten.
        batch: the job that it is a line of.
        called_off_at: of a batch, when it was: whoever does it ends it, with what there is.
        attempts: how often it was taken.
        progress, previews, refused: how far it is, see `SoFar`.
        traceparent: the span in which it was handed in, as W3C Trace Context says it.
        results, outcome: the files that came of it, and what is to be said of them.
    """

    id: str
    kind: Kind
    owner: str
    digest: str
    request: dict[str, JsonValue]
    folder: str
    created_at: float
    weight: float = 1.0
    pictures_size: int = 0
    webhook_url: str | None = None
    base_url: str = ""
    told: tuple[str, ...] = ()
    call: Lease | None = None
    awaited: bool = False
    batch: str | None = None
    called_off_at: float | None = None
    priority: int = 0
    keep_s: float = 86_400.0
    revision: int = 0
    status: Status = "queued"
    attempts: int = 0
    lease: Lease | None = None
    progress: int = 0
    previews: tuple[JobFile, ...] = ()
    refused: int = 0
    results: tuple[JobFile, ...] = ()
    outcome: dict[str, JsonValue] = {}
    error: JobError | None = None
    traceparent: str = ""
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it is completed, failed or cancelled."""
        return self.status in ENDED

    @property
    def caller(self) -> Caller:
        """For whom it is done."""
        return Caller(self.owner, self.weight)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        files = (*self.previews, *self.results)
        return self.pictures_size + sum(file.size for file in files)

    @property
    def expires_at(self) -> float | None:
        """Unix time; `None`: it has not ended."""
        return None if self.ended_at is None else self.ended_at + self.keep_s

    @property
    def untold(self) -> str | None:
        """The next event that is to be delivered, if there is one."""
        if self.webhook_url is None:
            return None
        events = [] if self.started_at is None else ["job.in_progress"]
        events += [f"job.{self.status}"] if self.ended else []
        return next((event for event in events if event not in self.told), None)

    def shows_as(self, other: "JobRecord") -> bool:
        """Whether nothing has changed but that somebody still works on it, or tells of it."""
        unseen = {name: getattr(other, name) for name in ("revision", "lease", "call", "told")}
        return self.model_copy(update=unseen) == other

    def changed(self, **fields: object) -> "JobRecord":
        """The next revision."""
        return self.model_copy(update={**fields, "revision": self.revision + 1})
