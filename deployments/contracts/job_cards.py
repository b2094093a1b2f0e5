"""Jobs as HTTP and Python handles show them."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

from deployments.contracts.api import ImagesBody
from deployments.contracts.videos import VideoCard


class JobFault(BaseModel):
    """Why a job failed. `param`: the field of the request that is to blame."""

    code: str
    message: str
    param: str | None = None


class JobCard(BaseModel):
    """A job: a video, or images that were asked for with `async: true`."""

    id: str
    object: Literal["job"] = "job"
    kind: Literal["image", "video"]
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    progress: int = Field(0, description="per cent")
    queue_position: int | None = Field(
        None, description="of one that is queued: how many are to be begun before it"
    )
    model: str
    prompt: str
    created_at: int
    started_at: int | None = None
    completed_at: int | None = None
    expires_at: int | None = Field(
        None, description="when it is forgotten, with what came of it; a batch's line: with that"
    )
    error: JobFault | None = None
    result: ImagesBody | None = Field(
        None, description="of images that are completed: the answer, as it would have come at once"
    )
    video: VideoCard | None = Field(None, description="of a video: as `GET /v1/videos/{id}`")


class JobsBody(BaseModel):
    """`GET /v1/jobs`."""

    object: Literal["list"] = "list"
    data: list[JobCard]
    first_id: str | None
    last_id: str | None
    has_more: bool


@dataclass(frozen=True)
class JobResult:
    """What came of a job, for other Ray applications.

    Attributes:
        files: of each image a file, in order, `None` where it could not be made (its error stands
            in the card); of a video one.
    """

    card: JobCard
    files: tuple[bytes | None, ...]
