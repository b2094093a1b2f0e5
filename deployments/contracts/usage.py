"""What keys did: what ingresses tell each other of them, and the body of `GET /v1/usage`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from pydantic import BaseModel, Field

COUNTED = ("answered", "refused", "failed", "cancelled", "moderated")  # requests, by their end


@dataclass(frozen=True)
class KeyTotals:
    """What a key asked for since the start. Every number only grows.

    Attributes:
        answered, refused, failed, cancelled, moderated: requests, by how they ended; refused are
            those that could not be had as they were (400, 403, 404, 429), failed those that broke
            or were too late, moderated those whose pictures were blocked.
        images: that were made; a video or control map is one.
        work: UNet pixel-steps of all requests that a device took.
    """

    answered: int = 0
    refused: int = 0
    failed: int = 0
    cancelled: int = 0
    images: int = 0
    work: int = 0
    moderated: int = 0

    def __add__(self, other: "KeyTotals") -> "KeyTotals":
        names = [each.name for each in fields(self)]
        return KeyTotals(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True)
class KeyReport:
    """How a key stands at one ingress.

    Attributes:
        running, waiting: images, as the limits of these names count them.
        oldest_s: how long the request that is next has waited, seconds.
        spent: UNet pixel-steps since the start, those of requests under way included.
    """

    totals: KeyTotals = KeyTotals()
    running: int = 0
    waiting: int = 0
    oldest_s: float = 0.0
    spent: int = 0


Report = Mapping[str, KeyReport]  # by the key's name


@dataclass(frozen=True)
class OtherReports:
    """What an ingress is told of the others.

    Attributes:
        present: the reports of those that still speak, by ingress.
        gone: totals of those that do so no more, by key.
    """

    present: Mapping[str, Report] = field(default_factory=dict)
    gone: Mapping[str, KeyTotals] = field(default_factory=dict)


class KeyLimits(BaseModel):
    """What a key may; null is without a limit."""

    weight: float = Field(1.0, description="its share of a device for which several keys wait")
    running: int | None = Field(None, description="images in the service at a time")
    waiting: int | None = Field(None, description="images that wait their turn beyond these")
    work_per_minute: int | None = Field(None, description="UNet pixel-steps")
    max_priority: int | None = None
    models: list[str] | None = None
    job_mb: int | None = Field(None, description="MiB that its jobs and files may hold")
    keep_s: float | None = Field(None, description="seconds that they are kept; null: as all are")


class KeyJobs(BaseModel):
    """What a key has in the storage of jobs."""

    unfinished: int = Field(0, description="jobs that have not ended, lines of batches counted")
    kept_bytes: int = Field(0, description="of pictures, results and files")


class KeyRequests(BaseModel):
    """Requests since the start, by how they ended."""

    answered: int
    refused: int
    failed: int
    cancelled: int
    moderated: int


class KeyUsage(BaseModel):
    """One key: what it did since the start, what it does, and what it may."""

    object: Literal["key.usage"] = "key.usage"
    key: str = Field(description="its name; empty for what was asked without a key")
    admin: bool = False
    requests: KeyRequests
    images: int = Field(description="that were made; a video or control map is one")
    work: int = Field(description="UNet pixel-steps")
    work_left: int | None = Field(
        None, description="UNet pixel-steps that may be asked for now; null without a limit"
    )
    running: int = Field(description="images in the service now")
    waiting: int = Field(description="images that wait their turn now")
    jobs: KeyJobs | None = Field(
        None, description="what is kept for it; null while the storage of jobs does not answer"
    )
    limits: KeyLimits


class KeyUsagesBody(BaseModel):
    """`GET /v1/usage`: the caller's own key; of all keys for one that is `admin`."""

    object: Literal["list"] = "list"
    data: list[KeyUsage]
