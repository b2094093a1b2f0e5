"""The data of server-sent events, as the API's description shows them."""

from typing import Literal

from pydantic import BaseModel

from deployments.contracts.api import ErrorBody, OutputFormat, UsageBody


class ImageEvent(BaseModel):
    """What partial and finished images have in common."""

    b64_json: str
    created_at: int
    size: str
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    image_index: int


class PartialImageEvent(ImageEvent):
    """An estimate of an image after `step` steps."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    partial_image_index: int
    step: int


class CompletedEvent(ImageEvent):
    """A finished image; the last one carries the usage of the whole request."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    seed: int
    usage: UsageBody | None = None


class ErrorEvent(BaseModel):
    """The request failed after its first event; nothing follows."""

    error: ErrorBody
