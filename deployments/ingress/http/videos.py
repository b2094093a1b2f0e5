"""The HTTP routes of videos: OpenAI's job shape."""

from typing import Any, Literal, cast

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.refusal import accepted
from deployments.contracts.videos import VideoBody, VideoCard, VideosBody, VideoVariant
from deployments.ingress.answer.metadata import wanted
from deployments.ingress.http.bodies import Bodies
from deployments.ingress.http.failures import named_as_sent
from deployments.ingress.http.idempotency import idempotency_key
from deployments.ingress.http.keys import caller_of, owner_of
from deployments.ingress.request.deaths import translated

POLL_HEADER = "openai-poll-after-ms"  # the official client asks again after so long
POLL_MS = {"queued": 1000, "in_progress": 500}


def video_routes(
    videos: DeploymentHandle[object], bodies: Bodies, metadata: bool = True
) -> APIRouter:
    """Routes over the deployment that keeps the jobs; `metadata`: whether files say how they were
    made, unless a request wants none."""
    router = APIRouter()

    @router.post("/v1/videos", response_model=VideoCard)
    async def create(request: Request) -> Response:
        """Starts a video. JSON, or multipart with `input_reference` as a file; the fields of
        `VideoBody`."""
        form = await bodies.either(request, VideoBody, "input_reference")
        body, key = form.fields, idempotency_key(request)
        asked = body.to_request(form.optional_file("input_reference"))
        caller, written = caller_of(request), wanted(body.metadata, metadata)
        creating = videos.create.remote(asked, body.output_format, key, caller, written)
        try:
            return await _card(creating)
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
        asked = videos.page.remote(after, limit, order == "desc", owner_of(request))
        found: VideosBody = await _answer(asked)
        return JSONResponse(found.model_dump())

    @router.get("/v1/videos/{video_id}", response_model=VideoCard)
    async def get(video_id: str, request: Request) -> Response:
        """How a video stands: `status` and `progress` in per cent."""
        return await _card(videos.get.remote(video_id, owner_of(request)))

    @router.post("/v1/videos/{video_id}/cancel", response_model=VideoCard)
    async def cancel(video_id: str, request: Request) -> Response:
        """Stops a video at its next step."""
        return await _card(videos.cancel.remote(video_id, owner_of(request)))

    @router.delete("/v1/videos/{video_id}")
    async def delete(video_id: str, request: Request) -> dict[str, object]:
        """Stops a video if it is being made, and forgets it."""
        await _answer(videos.delete.remote(video_id, owner_of(request)))
        return {"id": video_id, "object": "video.deleted", "deleted": True}

    @router.get("/v1/videos/{video_id}/content", response_class=Response)
    async def content(video_id: str, request: Request, variant: VideoVariant = "video") -> Response:
        """The file of a completed video; its first frame (webp); or its frames in a grid (jpeg)."""
        asked = videos.content.remote(video_id, owner_of(request), variant)
        found: tuple[bytes, str] = await _answer(asked)
        data, media_type = found
        return Response(data, media_type=media_type)

    return router


async def _card(response: object) -> JSONResponse:
    card: VideoCard = await _answer(response)
    wait_ms = POLL_MS.get(card.status)
    headers = {} if wait_ms is None else {POLL_HEADER: str(wait_ms)}
    return JSONResponse(card.model_dump(), headers=headers)


async def _answer(response: object) -> Any:
    with translated():
        return accepted(await cast(DeploymentResponse[object], response))
