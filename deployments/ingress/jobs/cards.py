"""Records of jobs as people see them."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from deployments.contracts.api import ImagesBody
from deployments.contracts.job_cards import JobCard, JobFault
from deployments.contracts.jobs import VideoRequest
from deployments.contracts.videos import VideoCard, VideoError
from deployments.ingress.jobs.asked import Asked, ImageAsked, VideoAsked
from deployments.jobs.queue import in_turn
from deployments.jobs.record import JobRecord

PICTURES, ASKED = "pictures", "asked"  # the parts of a record's request


def asked_of(record: JobRecord) -> Asked:
    """What a job was asked for, with the names of files instead of pictures."""
    kind = VideoAsked if record.kind == "video" else ImageAsked
    return kind.model_validate(record.request[ASKED])


def request_of(asked: Asked, pictures: Mapping[str, str]) -> dict[str, JsonValue]:
    """The same as a record keeps it. `pictures`: names of files by field.

    What is left out is not in it: a release that does not know a field yet can do the job.
    """
    return {ASKED: asked.model_dump(mode="json", exclude_defaults=True), PICTURES: dict(pictures)}


def pictures_in(record: JobRecord) -> dict[str, str]:
    """The names of the files of a job's pictures, by field."""
    named = record.request[PICTURES]
    assert isinstance(named, dict)
    return {param: str(name) for param, name in named.items()}


def video_card(record: JobRecord) -> VideoCard:
    """A video, as OpenAI shows it."""
    asked = asked_of(record)
    request = asked.request
    assert isinstance(request, VideoRequest)
    assert isinstance(asked, VideoAsked)
    sized = request.width is not None
    error = record.error
    return VideoCard(
        id=record.id,
        created_at=int(record.created_at),
        completed_at=whole(record.ended_at),
        expires_at=whole(record.expires_at),
        status=record.status,
        progress=record.progress,
        error=None if error is None else VideoError(code=error.code, message=error.message),
        model=request.model or "",
        prompt=request.prompt,
        size=f"{request.width}x{request.height}" if sized else None,
        seconds=f"{request.num_frames / request.fps:g}",
        num_frames=request.num_frames,
        fps=request.fps,
        output_format=asked.output_format,
    ).model_copy(update=dict(record.outcome))


def images_body(record: JobRecord) -> ImagesBody:
    """The answer of images that are completed; where an image has a file, its role stands as the
    URL."""
    return ImagesBody.model_validate(record.outcome)


def images_by_url(record: JobRecord, base_url: str) -> ImagesBody:
    """The same with the URLs of the files. `base_url`: of the service; "": paths alone."""
    body = images_body(record)
    urls = {
        file.role: f"{base_url}/v1/jobs/{record.id}/files/{file.name}" for file in record.results
    }
    for image in body.data:
        if image.url is not None:
            image.url = urls[image.url]
    return body


def job_card(record: JobRecord, position: int | None = None, base_url: str = "") -> JobCard:
    """A job of any kind. `position`: of one that is queued; `base_url`: see `images_by_url`."""
    request = asked_of(record).request
    error = record.error
    done = record.kind == "image" and record.status == "completed"
    return JobCard(
        id=record.id,
        kind=record.kind,
        status=record.status,
        progress=record.progress,
        queue_position=position,
        model=request.model or "",
        prompt=request.prompt,
        created_at=int(record.created_at),
        started_at=whole(record.started_at),
        completed_at=whole(record.ended_at),
        expires_at=None if record.batch is not None else whole(record.expires_at),
        error=None if error is None else JobFault(**error.model_dump()),
        result=images_by_url(record, base_url) if done else None,
        video=video_card(record) if record.kind == "video" else None,
    )


def listed(record: JobRecord, batch: str | None = None) -> bool:
    """Whether a record is a job of this batch; `None`: one that was asked for by itself."""
    return record.kind in ("image", "video") and record.batch == batch


def positions(jobs: Sequence[JobRecord]) -> dict[str, int]:
    """Of the jobs that are queued: how many are to be begun before each, by id."""
    waiting = [job for job in jobs if job.status == "queued"]
    running = [job for job in jobs if job.status == "in_progress"]
    turns = [job.id for job in in_turn([*waiting, *running]) if job.status == "queued"]
    return {job_id: place for place, job_id in enumerate(turns)}


def whole(seconds: float | None) -> int | None:
    """A time as answers say it."""
    return None if seconds is None else int(seconds)
