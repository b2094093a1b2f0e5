"""Events of a request as OpenAI's server-sent events."""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.contracts.api import ImagesRequestBody
from deployments.contracts.jobs import (
    FailedImage,
    FinishedImage,
    ImageRequest,
    PartialImage,
    StreamEvent,
)
from deployments.ingress.answer.failures import failure
from deployments.ingress.answer.media import Encoding
from deployments.ingress.answer.usage import usage_body
from deployments.ingress.http.events import error_text
from deployments.ingress.http.keys import caller_of
from deployments.ingress.http.refusals import note_error
from deployments.ingress.request.course import stage
from deployments.ingress.request.service import Service
from deployments.ingress.request.workers import Workers


@dataclass(frozen=True)
class StreamAnswer:
    """How a request's events are to be said.

    Attributes:
        ignored: fields that were understood and change nothing.
    """

    body: ImagesRequestBody
    encoding: Encoding
    ignored: Sequence[str]


async def stream_images(
    service: Service,
    request: Request,
    asked: ImageRequest,
    answer: StreamAnswer,
    workers: Workers,
) -> StreamingResponse:
    """Server-sent events. Waits for the first, so that a refusal still has its status."""
    events = service.stream(asked, caller_of(request))
    first = await anext(events)
    shown = _server_sent(request.scope, first, events, answer, workers)
    return _EventStream(shown, events)


class _EventStream(StreamingResponse):
    """Closes the events, however it ends: even a response that was never begun has a job."""

    media_type = "text/event-stream"

    def __init__(self, shown: AsyncGenerator[str], events: AsyncGenerator[StreamEvent]) -> None:
        super().__init__(shown)
        self._open = (shown, events)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            for each in self._open:
                await each.aclose()


async def _server_sent(
    scope: Scope,
    first: StreamEvent,
    rest: AsyncIterator[StreamEvent],
    answer: StreamAnswer,
    workers: Workers,
) -> AsyncGenerator[str]:
    """OpenAI's events; `failed` names an image that will not come, beside others that do."""
    try:
        async for event in _chain(first, rest):
            match event:
                case PartialImage():
                    with stage("encode"):
                        text = await workers.run(_partial, event, answer)
                    yield text
                case FinishedImage():
                    with stage("encode"):
                        text = await workers.run(_completed, event, answer)
                    yield text
                case FailedImage():
                    yield _failed(event, answer.body)
    except Exception as error:
        refusal = failure(error)
        note_error(scope, refusal.status, refusal.body.error)
        yield error_text(refusal.body)


async def _chain(
    first: StreamEvent, rest: AsyncIterator[StreamEvent]
) -> AsyncIterator[StreamEvent]:
    yield first
    async for event in rest:
        yield event


def _failed(image: FailedImage, body: ImagesRequestBody) -> str:
    kind = f"{body.EVENTS}.failed"
    data = {
        "type": kind,
        "created_at": int(time.time()),
        "image_index": image.image_index,
        "error": failure(image.error).body.error.model_dump(),
    }
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def _partial(image: PartialImage, answer: StreamAnswer) -> str:
    more = {"partial_image_index": image.partial_index, "step": image.step}
    return _event("partial_image", image, answer.encoding.text(image.pixels), answer.body, more)


def _completed(image: FinishedImage, answer: StreamAnswer) -> str:
    text = answer.encoding.text(image.pixels, image.recipe, image.seed)
    usage = usage_body(image.usage).model_dump()
    more = {"seed": image.seed, "ignored": answer.ignored, "usage": usage}
    return _event("completed", image, text, answer.body, more)


def _event(
    name: str,
    image: PartialImage | FinishedImage,
    text: str,
    body: ImagesRequestBody,
    more: Mapping[str, object],
) -> str:
    """`text`: the image's file in base64; `more`: what only this kind of event says."""
    kind = f"{body.EVENTS}.{name}"
    height, width = image.pixels.shape[:2]
    data = {
        "type": kind,
        "b64_json": text,
        "created_at": int(time.time()),
        "size": f"{width}x{height}",
        "quality": body.quality or "auto",
        "background": "opaque",
        "output_format": body.output_format,
        "image_index": image.image_index,
        **more,
    }
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
