"""Answers to requests that carry an `Idempotency-Key`: made once, and given to whoever asks again.

Such a request becomes a job, for whose end its connection waits. So its answer outlives the
connection, and the process that took the request.
"""

import base64
import io
import time
from collections.abc import AsyncGenerator

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from PIL import Image

from deployments.contracts.api import ImagesBody
from deployments.contracts.errors import Cancelled, DeadlineExceeded, TcdError
from deployments.contracts.jobs import Usage
from deployments.ingress.answer.failures import error_of, failure, passing
from deployments.ingress.answer.usage import usage_body
from deployments.ingress.http.bodies import JSON
from deployments.ingress.http.events import CompletedEvent, FailedEvent, PartialImageEvent
from deployments.ingress.http.jobs import Shown, places
from deployments.ingress.http.keys import caller_of
from deployments.ingress.http.refusals import log_refusal
from deployments.ingress.jobs.asked import ImageAsked
from deployments.ingress.jobs.desk import Desk
from deployments.ingress.request.service import Service
from deployments.jobs.record import JobFile, JobRecord


class Once:
    """Answers that come once."""

    def __init__(self, service: Service, desk: Desk, shown: Shown) -> None:
        self._service = service
        self._desk = desk
        self._shown = shown

    async def images(self, request: Request, asked: ImageAsked, key: str) -> Response:
        """The answer to a request for images. Raises the `TcdError` that it failed with; one that
        passes is not kept."""
        record = await self._submitted(request, asked, key)
        record = await self._ended(record, asked)
        body = await self._shown.images(request, record)
        return Response(body.model_dump_json(exclude_none=True), media_type=JSON)

    async def stream(self, request: Request, asked: ImageAsked, key: str) -> Response:
        """The same as events. Partial images are those that are there when it is asked."""
        record = await self._submitted(request, asked, key)
        events = self._events(request, record, asked)
        return StreamingResponse(events, media_type="text/event-stream")

    async def _submitted(self, request: Request, asked: ImageAsked, key: str) -> JobRecord:
        self._service.time_of(asked.request)
        return await self._desk.submit(asked, key, caller_of(request), awaited=True)

    async def _ended(self, record: JobRecord, asked: ImageAsked) -> JobRecord:
        timeout_s = self._service.time_of(asked.request)
        try:
            ended = await self._desk.ended(record, timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the request was not done within {timeout_s:g} s; it goes on, and the same key "
                "gets its answer"
            ) from None
        return await self._accepted(ended)

    async def _accepted(self, ended: JobRecord) -> JobRecord:
        if ended.status == "cancelled":
            raise Cancelled("the request was cancelled as a job")
        if ended.error is not None:
            if passing(ended.error.code):
                await self._desk.delete(ended.id)
            raise error_of(ended.error.code, ended.error.message, ended.error.param)
        return ended

    async def _events(
        self, request: Request, record: JobRecord, asked: ImageAsked
    ) -> AsyncGenerator[str]:
        told: set[str] = set()
        try:
            async for now in self._desk.followed(record):
                for preview in now.previews:
                    if preview.name not in told:
                        told.add(preview.name)
                        data = await self._desk.preview(now, preview)
                        if data is not None:
                            yield _event(_partial(asked, preview, data))
                record = now
            await self._accepted(record)
            body = await self._shown.images(request, record)
            for index, image in enumerate(body.data):
                told_of = _completed if image.error is None else _failed
                yield _event(told_of(asked, index, body))
        except TcdError as error:
            refusal = failure(error)
            log_refusal(request.scope, refusal.status, refusal.body.error, "broken off")
            yield f"event: error\ndata: {refusal.body.model_dump_json()}\n\n"


def _partial(asked: ImageAsked, preview: JobFile, data: bytes) -> PartialImageEvent:
    index, partial, step = places(preview)
    width, height = Image.open(io.BytesIO(data)).size
    return PartialImageEvent.model_validate(
        {
            "type": f"{asked.events}.partial_image",
            "b64_json": base64.b64encode(data).decode(),
            "created_at": int(time.time()),
            "size": f"{width}x{height}",
            "quality": asked.quality,
            "output_format": asked.output_format,
            "image_index": index,
            "partial_image_index": partial,
            "step": step,
        }
    )


def _completed(asked: ImageAsked, index: int, body: ImagesBody) -> CompletedEvent:
    """The usage is that of the whole request with the first image, and none with the others."""
    first = next(place for place, image in enumerate(body.data) if image.error is None)
    image, none = body.data[index], usage_body(Usage())
    return CompletedEvent.model_validate(
        {
            "type": f"{asked.events}.completed",
            "b64_json": image.b64_json,
            "created_at": body.created,
            "size": body.size,
            "quality": body.quality,
            "output_format": body.output_format,
            "image_index": index,
            "seed": image.seed,
            "ignored": body.ignored,
            "usage": body.usage if index == first else none,
        }
    )


def _failed(asked: ImageAsked, index: int, body: ImagesBody) -> FailedEvent:
    return FailedEvent.model_validate(
        {
            "type": f"{asked.events}.failed",
            "created_at": body.created,
            "image_index": index,
            "error": body.data[index].error,
        }
    )


def _event(data: PartialImageEvent | CompletedEvent | FailedEvent) -> str:
    return f"event: {data.type}\ndata: {data.model_dump_json()}\n\n"
