"""The HTTP routes of videos: OpenAI's job shape."""

from typing import Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.videos import VideoBody, VideoCard, VideosBody, VideoVariant
from deployments.ingress.answer.metadata import wanted
from deployments.ingress.http.bodies import Bodies
from deployments.ingress.http.failures import named_as_sent
from deployments.ingress.http.idempotency import idempotency_key
from deployments.ingress.http.jobs import Shown, page_of, poll_headers
from deployments.ingress.http.keys import caller_of, owner_of
from deployments.ingress.jobs.asked import VideoAsked
from deployments.ingress.jobs.cards import video_card
from deployments.ingress.jobs.desk import Desk
from deployments.jobs.record import JobRecord


def video_routes(desk: Desk, shown: Shown, bodies: Bodies, metadata: bool = True) -> APIRouter:
    """Routes over the jobs of the service that are videos; `metadata`: whether files say how they
    were made, unless a request wants none."""
    router = APIRouter()

    @router.post("/v1/videos", response_model=VideoCard)
    async def create(request: Request) -> Response:
        """Starts a video. JSON, or multipart with `input_reference` as a file; the fields of
        `VideoBody`."""
        form = await bodies.either(request, VideoBody, "input_reference")
        body, key = form.fields, idempotency_key(request)
        asked = VideoAsked(
            request=body.to_request(form.optional_file("input_reference")),
            output_format=body.output_format,
            metadata=wanted(body.metadata, metadata),
            webhook_url=body.webhook_url,
        )
        base_url = shown.base_url(request)
        try:
            return _card(await desk.submit(asked, key, caller_of(request), base_url=base_url))
        except InvalidRequest as error:
            raise named_as_sent(error, "image", "input_reference") from error

    @router.get("/v1/videos", response_model=VideosBody)
    async def page(
        request: Request,
        after: str | None = None,
        limit: int = Query(20, ge=1, le=100),
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        """The videos, the newest first."""
        found = await desk.page(after, limit, order == "desc", owner_of(request), "video")
        cards = [video_card(record) for record in found.jobs]
        return JSONResponse(page_of(VideosBody, cards, found).model_dump())

    @router.get("/v1/videos/{video_id}", response_model=VideoCard)
    async def get(video_id: str, request: Request) -> Response:
        """How a video stands: `status` and `progress` in per cent."""
        return _card(await desk.get(video_id, owner_of(request), "video"))

    @router.post("/v1/videos/{video_id}/cancel", response_model=VideoCard)
    async def cancel(video_id: str, request: Request) -> Response:
        """Stops a video at its next step."""
        return _card(await desk.cancel(video_id, owner_of(request), "video"))

    @router.delete("/v1/videos/{video_id}")
    async def delete(video_id: str, request: Request) -> dict[str, object]:
        """Stops a video if it is being made, and forgets it."""
        await desk.delete(video_id, owner_of(request), "video")
        return {"id": video_id, "object": "video.deleted", "deleted": True}

    @router.get("/v1/videos/{video_id}/content", response_class=Response)
    async def content(video_id: str, request: Request, variant: VideoVariant = "video") -> Response:
        """The file of a completed video; its first frame (webp); or its frames in a grid (jpeg)."""
        record = await desk.get(video_id, owner_of(request), "video")
        data, media_type = await desk.file(record, variant)
        return Response(data, media_type=media_type)

    return router


def _card(record: JobRecord) -> JSONResponse:
    return JSONResponse(video_card(record).model_dump(), headers=poll_headers(record))
