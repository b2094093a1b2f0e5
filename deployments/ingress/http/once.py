"""Answers to requests that carry an `Idempotency-Key`: made once, and given to whoever asks again.

Such a request becomes a job, for whose end its connection waits. So its answer outlives the
connection, and the process that took the request.
"""

import io
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from PIL import Image

from deployments.contracts.api import ImagesBody
from deployments.contracts.errors import Cancelled, DeadlineExceeded, NotFound, NotReady, TcdError
from deployments.contracts.jobs import Usage
from deployments.ingress.answer.failures import error_of, failure
from deployments.ingress.answer.usage import usage_body
from deployments.ingress.http.bodies import JSON
from deployments.ingress.http.events import (
    CompletedEvent,
    FailedEvent,
    PartialImageEvent,
    error_text,
    event_text,
)
from deployments.ingress.http.jobs import KEEPALIVE, Shown, base64_of, places
from deployments.ingress.http.keys import caller_of
from deployments.ingress.http.refusals import note_error
from deployments.ingress.jobs.asked import ImageAsked
from deployments.ingress.jobs.desk import Desk
from deployments.ingress.request.service import Service
from deployments.ingress.request.workers import Workers
from deployments.jobs.record import JobFile, JobRecord


class Once:
    """Answers that come once."""

    def __init__(self, service: Service, desk: Desk, shown: Shown, workers: Workers) -> None:
        self._service = service
        self._desk = desk
        self._shown = shown
        self._workers = workers

    async def images(self, request: Request, asked: ImageAsked, key: str) -> Response:
        """The answer to a request for images. Raises the `TcdError` that it failed with; one that
        passes is not kept."""
        record = await self._submitted(request, asked, key)
        with self._in_time(asked):
            record = await self._desk.ended(record, self._service.time_of(asked.request))
        await self._accepted(record)
        body = await self._shown.images(request, record)
        return Response(await self._workers.run(_json, body), media_type=JSON)

    async def stream(self, request: Request, asked: ImageAsked, key: str) -> Response:
        """The same as events. Partial images are those that are there when it is asked."""
        record = await self._submitted(request, asked, key)
        events = self._events(request, record, asked)
        return StreamingResponse(events, media_type="text/event-stream")

    async def _submitted(self, request: Request, asked: ImageAsked, key: str) -> JobRecord:
        self._service.time_of(asked.request)
        return await self._desk.submit(asked, key, caller_of(request), awaited=True)

    @contextmanager
    def _in_time(self, asked: ImageAsked) -> Iterator[None]:
        """What it means that a job that is waited for is late, or gone."""
        try:
            yield
        except TimeoutError:
            raise DeadlineExceeded(
                f"the request was not done within {self._service.time_of(asked.request):g} s; the "
                "same key finds what becomes of it"
            ) from None
        except NotFound:
            raise NotReady("the request was forgotten before it was done; try again") from None

    async def _accepted(self, ended: JobRecord) -> None:
        if ended.status == "cancelled":
            raise Cancelled("the request was cancelled as a job")
        if ended.error is not None:
            await self._desk.forget_passing(ended)
            raise error_of(ended.error.code, ended.error.message, ended.error.param)

    async def _events(
        self, request: Request, record: JobRecord, asked: ImageAsked
    ) -> AsyncGenerator[str]:
        told: set[str] = set()
        until = time.monotonic() + self._service.time_of(asked.request)
        try:
            with self._in_time(asked):
                async with aclosing(self._desk.followed(record)) as states:
                    async for now in states:
                        if time.monotonic() > until:
                            raise TimeoutError
                        if now is None:
                            yield KEEPALIVE
                            continue
                        record = now
                        async for preview, data in self._desk.previews(now, told):
                            event = await self._workers.run(_partial, asked, preview, data)
                            yield event_text(event)
            await self._accepted(record)
            body = await self._shown.images(request, record)
            for index, image in enumerate(body.data):
                told_of = _completed if image.error is None else _failed
                yield await self._workers.run(event_text, told_of(asked, index, body))
        except TcdError as error:
            refusal = failure(error)
            note_error(request.scope, refusal.status, refusal.body.error)
            yield error_text(refusal.body)


def _json(body: ImagesBody) -> bytes:
    return body.model_dump_json(exclude_none=True).encode()


def _partial(asked: ImageAsked, preview: JobFile, data: bytes) -> PartialImageEvent:
    index, partial, step = places(preview)
    width, height = Image.open(io.BytesIO(data)).size
    return PartialImageEvent.model_validate(
        {
            "type": f"{asked.events}.partial_image",
            "b64_json": base64_of(data),
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
