"""OpenAI's Files and Batch API, for images."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from deployments.contracts.api import EditsForm, Images, RequestBody
from deployments.contracts.jobs import Int, Name

Endpoint = Literal["/v1/images/generations", "/v1/images/edits"]
MAX_LINES = 10_000
MAX_METADATA = 16
MAX_CUSTOM_ID = 256


class ExpiresAfter(RequestBody):
    """When a file is forgotten; sooner, if the service keeps none so long."""

    anchor: Literal["created_at"]
    seconds: Int = Field(ge=3600, le=2_592_000)


class FileForm(RequestBody):
    """`POST /v1/files`, without its file."""

    purpose: Literal["batch"]
    expires_after: ExpiresAfter | None = None


class FileCard(BaseModel):
    """A file: what is to be done by a batch, or what came of one."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"


class FilesBody(BaseModel):
    """`GET /v1/files`."""

    object: Literal["list"] = "list"
    data: list[FileCard]
    first_id: str | None
    last_id: str | None
    has_more: bool


Label = Annotated[str, StringConstraints(max_length=512)]


class BatchBody(RequestBody):
    """`POST /v1/batches`."""

    input_file_id: Name = Field(description="of `POST /v1/files` with purpose batch")
    endpoint: Endpoint
    completion_window: Literal["24h"] = Field(
        description="what is not done by then is not done any more"
    )
    metadata: dict[Label, Label] | None = Field(None, max_length=MAX_METADATA)
    output_expires_after: ExpiresAfter | None = None


class BatchLine(RequestBody):
    """One line of a batch's input file."""

    custom_id: Annotated[str, Field(min_length=1, max_length=MAX_CUSTOM_ID)]
    method: Literal["POST"]
    url: Endpoint
    body: dict[str, Any]


class EditsLineBody(EditsForm):
    """The body of an edit in a batch: its pictures as texts."""

    image: Images = Field(
        min_length=1, description="the picture to edit, and further ones to resemble"
    )
    mask: str | None = None


class BatchFault(BaseModel):
    """Why a batch was not begun."""

    code: str
    message: str
    param: str | None = None
    line: int | None = Field(None, description="of the input file, from 1")


class BatchFaults(BaseModel):
    """A list of them."""

    object: Literal["list"] = "list"
    data: list[BatchFault]


class RequestCounts(BaseModel):
    """The requests of a batch."""

    total: int
    completed: int
    failed: int


class BatchCard(BaseModel):
    """A batch, as OpenAI shows it."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    errors: BatchFaults | None = None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Literal[
        "validating", "in_progress", "completed", "failed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None


class BatchesBody(BaseModel):
    """`GET /v1/batches`."""

    object: Literal["list"] = "list"
    data: list[BatchCard]
    first_id: str | None
    last_id: str | None
    has_more: bool
