"""The data of server-sent events, as the API's description shows them."""

from typing import Literal

from pydantic import BaseModel

from deployments.contracts.api import ErrorAnswer, ErrorBody, OutputFormat, UsageBody
from deployments.contracts.job_cards import JobCard
from deployments.contracts.jobs import Quality


class ImageEvent(BaseModel):
    """What partial and finished images have in common."""

    b64_json: str
    created_at: int
    size: str
    quality: Quality = "auto"
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    image_index: int


class PartialImageEvent(ImageEvent):
    """An estimate of an image after `step` steps."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    partial_image_index: int
    step: int


class CompletedEvent(ImageEvent):
    """A finished image. `usage`: its share of the request's; all events together have all of it.
    `ignored`: fields that were understood and change nothing."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    seed: int
    ignored: list[str] = []
    usage: UsageBody


class FailedEvent(BaseModel):
    """An image that will not come, beside others that do."""

    type: Literal["image_generation.failed", "image_edit.failed"]
    created_at: int
    image_index: int
    error: ErrorBody


class JobEvent(BaseModel):
    """A job as it stands: whenever that has changed, and when it has ended."""

    type: Literal["job.progress", "job.completed", "job.failed", "job.cancelled"]
    job: JobCard


class JobPartialImageEvent(BaseModel):
    """An estimate of an image of a job after `step` steps."""

    type: Literal["job.partial_image"]
    b64_json: str
    media_type: str
    image_index: int
    partial_image_index: int
    step: int


class ErrorEvent(BaseModel):
    """The request failed after its first event; nothing follows."""

    error: ErrorBody


Typed = PartialImageEvent | CompletedEvent | FailedEvent | JobEvent | JobPartialImageEvent


def event_text(event: Typed, *, nulls: bool = True) -> str:
    """An event as it is sent. `nulls`: with the fields that say nothing."""
    return f"event: {event.type}\ndata: {event.model_dump_json(exclude_none=not nulls)}\n\n"


def error_text(error: ErrorAnswer) -> str:
    """The last event of a request that failed after its first."""
    return f"event: error\ndata: {error.model_dump_json()}\n\n"
