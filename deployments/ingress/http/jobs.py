"""The HTTP routes of jobs: images that were asked for with `async: true`, and videos."""

import base64
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Literal, Protocol, TypeVar, cast

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from deployments.contracts.api import ImagesBody
from deployments.contracts.errors import TcdError
from deployments.contracts.job_cards import JobCard, JobsBody
from deployments.ingress.answer.failures import failure
from deployments.ingress.http.events import JobEvent, JobPartialImageEvent, error_text, event_text
from deployments.ingress.http.keys import owner_of
from deployments.ingress.jobs.asked import ImageAsked
from deployments.ingress.jobs.cards import (
    asked_of,
    images_body,
    images_by_url,
    job_card,
    listed,
)
from deployments.ingress.jobs.desk import Desk, Page
from deployments.ingress.request.workers import Workers
from deployments.jobs.record import JobFile, JobRecord

POLL_HEADER = "openai-poll-after-ms"  # the official client asks again after so long
KEEPALIVE = ": nothing new\n\n"  # so that no proxy takes the connection for dead
POLL_MS = {"queued": 1000, "in_progress": 500}
Body = TypeVar("Body", bound=BaseModel)
FILE_HEADERS = {
    "cache-control": "private, max-age=86400, immutable",
    "x-content-type-options": "nosniff",
}


class Card(Protocol):
    """Something with an id."""

    id: str


def job_routes(desk: Desk, shown: "Shown") -> APIRouter:
    """Routes over the jobs of the service."""
    router = APIRouter()

    @router.get("/v1/jobs", response_model=JobsBody)
    async def page(
        request: Request,
        after: str | None = None,
        limit: int = Query(20, ge=1, le=100),
        order: Literal["asc", "desc"] = "desc",
        kind: Literal["image", "video"] | None = None,
        batch: str | None = None,
    ) -> Response:
        """The jobs, the newest first, without images that answers carry; those of a `batch`, if one
        is named, else those of none."""
        if batch is not None:
            await desk.get(batch, owner_of(request), "batch", "batch")
        may = partial(listed, batch=batch)
        found = await desk.page(after, limit, order == "desc", owner_of(request), kind, may)
        cards = [
            shown.by_url(request, record, found.positions.get(record.id)) for record in found.jobs
        ]
        return _json(page_of(JobsBody, cards, found))

    @router.get("/v1/jobs/{job_id}", response_model=JobCard)
    async def get(job_id: str, request: Request) -> Response:
        """How a job stands, and its answer when it is completed."""
        return await shown.card(request, await desk.get(job_id, owner_of(request)))

    @router.post("/v1/jobs/{job_id}/cancel", response_model=JobCard)
    async def cancel(job_id: str, request: Request) -> Response:
        """Stops a job at its next step; one that has ended stays as it is."""
        return await shown.card(request, await desk.cancel(job_id, owner_of(request)))

    @router.delete("/v1/jobs/{job_id}")
    async def delete(job_id: str, request: Request) -> dict[str, object]:
        """Stops a job if it is being done, and forgets it with all that came of it."""
        await desk.delete(job_id, owner_of(request))
        return {"id": job_id, "object": "job.deleted", "deleted": True}

    @router.get("/v1/jobs/{job_id}/content", response_class=Response)
    async def content(job_id: str, request: Request, index: int = Query(0, ge=0)) -> Response:
        """An image of a completed job, or its video."""
        record = await desk.get(job_id, owner_of(request))
        role = "video" if record.kind == "video" and not index else str(index)
        data, media_type = await desk.file(record, role)
        return Response(data, media_type=media_type)

    @router.get("/v1/jobs/{job_id}/files/{name}", response_class=Response)
    async def file(job_id: str, name: str) -> Response:
        """An image of a job, by the URL in its answer."""
        data, found = await desk.named_file(job_id, name)
        return Response(data, media_type=found.media_type, headers=FILE_HEADERS)

    @router.get("/v1/jobs/{job_id}/events", response_class=StreamingResponse)
    async def events(job_id: str, request: Request) -> Response:
        """Server-sent events: `job.progress` as it stands and whenever that changes,
        `job.partial_image`, and at the end `job.completed`, `job.failed` or `job.cancelled`."""
        record = await desk.get(job_id, owner_of(request))
        return StreamingResponse(shown.events(request, record), media_type="text/event-stream")

    return router


class Shown:
    """Jobs as answers show them.

    Args:
        public_url: where clients reach the service; `None`: where they say that they do.
        workers: threads that encode.
    """

    def __init__(self, desk: Desk, public_url: str | None, workers: Workers) -> None:
        self._desk = desk
        self._workers = workers
        self._public_url = public_url

    def by_url(self, request: Request, record: JobRecord, position: int | None) -> JobCard:
        """A job's card, its images by URL."""
        return job_card(record, position, self.base_url(request))

    async def card(self, request: Request, record: JobRecord, status: int = 200) -> Response:
        """A job's card as a response, with the images in it if they were asked for so."""
        card = self.by_url(request, record, await self._desk.position(record))
        if card.result is not None and _inline(record):
            card.result = await self.images(request, record)
        return await self._workers.run(_json, card, status, poll_headers(record))

    async def images(self, request: Request, record: JobRecord) -> ImagesBody:
        """The answer of images that are completed."""
        if not _inline(record):
            return images_by_url(record, self.base_url(request))
        body = images_body(record)
        for image in body.data:
            if image.url is not None:
                data, _ = await self._desk.file(record, image.url)
                image.b64_json, image.url = await self._workers.run(base64_of, data), None
        return body

    async def events(self, request: Request, record: JobRecord) -> AsyncGenerator[str]:
        """A job's events until it has ended; the last one says if it is gone."""
        told: set[str] = set()
        try:
            async for now in self._desk.followed(record):
                if now is None:
                    yield KEEPALIVE
                    continue
                async for preview, data in self._desk.previews(now, told):
                    yield event_text(_partial(preview, data), nulls=False)
                card = self.by_url(request, now, await self._desk.position(now))
                kind = f"job.{now.status}" if now.ended else "job.progress"
                event = JobEvent.model_validate({"type": kind, "job": card})
                yield event_text(event, nulls=False)
        except TcdError as error:  # it has been deleted, or the storage does not answer
            yield error_text(failure(error).body)

    def base_url(self, request: Request) -> str:
        """Where clients reach the service."""
        return (self._public_url or str(request.base_url)).rstrip("/")


def page_of(kind: type[Body], cards: Sequence[Card], found: Page) -> Body:
    """A page as all lists of OpenAI's have it."""
    return kind.model_validate(
        {
            "data": cards,
            "first_id": cards[0].id if cards else None,
            "last_id": cards[-1].id if cards else None,
            "has_more": found.has_more,
        }
    )


def poll_headers(record: JobRecord) -> dict[str, str]:
    """When to ask for a job again, if it has not ended."""
    wait_ms = POLL_MS.get(record.status)
    return {} if wait_ms is None else {POLL_HEADER: str(wait_ms)}


def base64_of(data: bytes) -> str:
    """As JSON carries a file."""
    return base64.b64encode(data).decode()


def _inline(record: JobRecord) -> bool:
    return cast(ImageAsked, asked_of(record)).inline


def _json(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(body.model_dump(mode="json"), status, headers)


def _partial(preview: JobFile, data: bytes) -> JobPartialImageEvent:
    image, index, step = places(preview)
    return JobPartialImageEvent(
        type="job.partial_image",
        b64_json=base64_of(data),
        media_type=preview.media_type,
        image_index=image,
        partial_image_index=index,
        step=step,
    )


def places(preview: JobFile) -> tuple[int, int, int]:
    """Of which image it is, the how manieth of it, and after how many steps."""
    image, index, step = map(int, preview.role.split("."))
    return image, index, step
