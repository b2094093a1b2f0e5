"""The HTTP routes: bodies in, answers and event streams out."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from configs.app import ServiceArgs
from deployments.contracts.api import (
    ErrorAnswer,
    GenerationsBody,
    ImageBody,
    ImagesBody,
    InputTokens,
    ModelCard,
    ModelsBody,
    UsageBody,
)
from deployments.contracts.errors import NotFound
from deployments.contracts.jobs import (
    Completed,
    FinishedImage,
    PartialImage,
    StreamEvent,
    Usage,
)
from deployments.ingress.failures import Failure, failure, from_faults, http_failure
from deployments.ingress.media import encode_base64
from deployments.ingress.metrics import CONTENT_TYPE, Metrics
from deployments.ingress.middleware import Authentication, BodyLimit, RequestCount
from deployments.ingress.service import Service

DESCRIPTION = """Stable Diffusion with TCD-LoRA. OpenAI's images API, plus the sampler's own
fields. Errors have OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorAnswer} for code in (400, 401, 404, 408, 413, 429, 500, 503)
}


def make_app(service: Service, args: ServiceArgs) -> FastAPI:
    """The web application around a service."""
    app = FastAPI(title="tcd", description=DESCRIPTION, version="1")
    metrics = Metrics()
    app.add_middleware(Authentication, env_name=args.api_keys_env)
    app.add_middleware(BodyLimit, max_bytes=args.max_body_bytes)
    app.add_middleware(RequestCount, metrics=metrics)  # the last one added is the outermost

    @app.exception_handler(RequestValidationError)
    async def refuse_body(_: Request, error: RequestValidationError) -> Response:
        faults = [
            (
                tuple(f["loc"][1:]) if f["loc"][:1] == ("body",) else tuple(f["loc"]),
                f["msg"],
                f["type"],
            )
            for f in error.errors()
        ]
        return answer(failure(from_faults(faults, tuple(GenerationsBody.model_fields))))

    @app.exception_handler(HTTPException)
    async def refuse_route(_: Request, error: HTTPException) -> Response:
        return answer(http_failure(error.status_code, str(error.detail)))

    @app.exception_handler(Exception)
    async def fail(_: Request, error: Exception) -> Response:
        return answer(failure(error))

    @app.post("/v1/images/generations", response_model=ImagesBody, responses=ERRORS)
    async def generations(body: GenerationsBody) -> Response:
        """Text to image."""
        try:
            if body.stream:
                return await stream_images(service, body)
            return JSONResponse((await make_images(service, body)).model_dump())
        except Exception as error:
            return answer(failure(error))

    @app.get("/v1/models", response_model=ModelsBody)
    async def models() -> ModelsBody:
        """The models that run."""
        return ModelsBody(data=await service.catalogue.cards())

    @app.get("/v1/models/{model_id}", response_model=ModelCard, responses=ERRORS)
    async def model(model_id: str) -> Response:
        """One model, with all that is needed to repeat its images with diffusers alone."""
        for card in await service.catalogue.cards():
            if card.id == model_id:
                return JSONResponse(card.model_dump())
        return answer(failure(NotFound(f"model {model_id!r} does not exist", "model")))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """Whether every deployed model answers: 200, or 503 with what each is doing."""
        states = await service.catalogue.states()
        ready = bool(states) and all(state == "RUNNING" for state in states.values())
        body = {"status": "ready" if ready else "not ready", "models": states}
        return JSONResponse(body, status_code=200 if ready else 503)

    @app.get("/metrics")
    async def metrics_text() -> Response:
        """Prometheus text: requests here, and every replica's engine."""
        figures = await service.catalogue.figures()
        text = await asyncio.to_thread(metrics.render, figures)
        return Response(text, media_type=CONTENT_TYPE)

    return app


def answer(refusal: Failure) -> JSONResponse:
    """An error as a response."""
    return JSONResponse(refusal.body.model_dump(), refusal.status, refusal.headers)


async def make_images(service: Service, body: GenerationsBody) -> ImagesBody:
    """Waits for all images of a request; encodes them off the event loop."""
    result = await service.generate(body.to_request())
    output_format = body.output_format or "png"
    texts = await asyncio.gather(
        *(
            asyncio.to_thread(encode_base64, pixels, output_format, body.output_compression)
            for pixels in result.images
        )
    )
    return ImagesBody(
        created=int(time.time()),
        model=result.model,
        output_format=output_format,
        size=f"{result.width}x{result.height}",
        data=[
            ImageBody(b64_json=text, seed=seed)
            for text, seed in zip(texts, result.seeds, strict=True)
        ],
        usage=usage_body(result.usage),
    )


async def stream_images(service: Service, body: GenerationsBody) -> StreamingResponse:
    """Server-sent events. Waits for the first, so that a refusal still has its status."""
    events = service.stream(body.to_request())
    first = await anext(events)
    return StreamingResponse(_server_sent(first, events, body), media_type="text/event-stream")


async def _server_sent(
    first: StreamEvent, rest: AsyncIterator[StreamEvent], body: GenerationsBody
) -> AsyncIterator[str]:
    """OpenAI's events. `completed` of the last image waits for the usage figures."""
    held: FinishedImage | None = None
    try:
        async for event in _chain(first, rest):
            match event:
                case PartialImage():
                    yield await _event("partial_image", event, body)
                case FinishedImage():
                    if held is not None:
                        yield await _event("completed", held, body)
                    held = event
                case Completed() if held is not None:
                    yield await _event("completed", held, body, event.usage)
    except Exception as error:
        refusal = failure(error)
        yield f"event: error\ndata: {refusal.body.model_dump_json()}\n\n"


async def _chain(
    first: StreamEvent, rest: AsyncIterator[StreamEvent]
) -> AsyncIterator[StreamEvent]:
    yield first
    async for event in rest:
        yield event


async def _event(
    name: str,
    image: PartialImage | FinishedImage,
    body: GenerationsBody,
    usage: Usage | None = None,
) -> str:
    output_format = body.output_format or "png"
    text = await asyncio.to_thread(
        encode_base64, image.pixels, output_format, body.output_compression
    )
    height, width = image.pixels.shape[:2]
    data: dict[str, object] = {
        "type": f"image_generation.{name}",
        "b64_json": text,
        "created_at": int(time.time()),
        "size": f"{width}x{height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": output_format,
        "image_index": image.image_index,
    }
    if isinstance(image, PartialImage):
        data |= {"partial_image_index": image.partial_index, "step": image.step}
    else:
        data["seed"] = image.seed
    if usage is not None:
        data["usage"] = usage_body(usage).model_dump()
    return f"event: image_generation.{name}\ndata: {json.dumps(data)}\n\n"


def usage_body(usage: Usage) -> UsageBody:
    """The usage figures as HTTP says them."""
    return UsageBody(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokens(text_tokens=usage.prompt_tokens),
        output_tokens=usage.image_tokens,
        total_tokens=usage.prompt_tokens + usage.image_tokens,
        denoising_steps=usage.denoising_steps,
    )
