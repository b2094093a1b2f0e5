"""The HTTP routes of images: generations, edits, variations."""

import asyncio
import time

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from deployments.contracts.api import (
    EditsForm,
    GenerationsBody,
    ImageBody,
    ImagesBody,
    ImagesRequestBody,
    VariationsForm,
)
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import ImageRequest, Pixels
from deployments.ingress.answer.media import encode, encode_base64
from deployments.ingress.answer.storage import Storage
from deployments.ingress.http.failures import ERRORS, answer, failure
from deployments.ingress.http.forms import received_form
from deployments.ingress.http.idempotency import idempotency_key, seeded
from deployments.ingress.http.keys import caller_of
from deployments.ingress.http.streams import stream_images, usage_body
from deployments.ingress.request.service import Service


def image_routes(service: Service, storage: Storage | None) -> APIRouter:
    """Routes over the service; `storage`: where images go that are wanted by URL."""
    router = APIRouter()

    @router.post("/v1/images/generations", response_model=ImagesBody, responses=ERRORS)
    async def generations(body: GenerationsBody, request: Request) -> Response:
        """Text to image."""
        try:
            return await images_answer(service, storage, request, body, body.to_request())
        except Exception as error:
            return answer(failure(error))

    @router.post("/v1/images/edits", response_model=ImagesBody, responses=ERRORS)
    async def edits(request: Request) -> Response:
        """A picture made anew: inside a mask, or as a whole. Multipart: `image`, optional
        `mask`, and the fields of `EditsForm`."""
        try:
            async with received_form(request, "image", "mask") as form:
                body = form.fields(EditsForm)
                image, mask = await form.file("image"), await form.optional_file("mask")
            asked = body.to_request(image, mask)
            return await images_answer(service, storage, request, body, asked)
        except Exception as error:
            return answer(failure(error))

    @router.post("/v1/images/variations", response_model=ImagesBody, responses=ERRORS)
    async def variations(request: Request) -> Response:
        """Pictures that resemble one: by IP-Adapter. Multipart: `image`, and the fields of
        `VariationsForm`."""
        try:
            async with received_form(request, "image") as form:
                body = form.fields(VariationsForm)
                image = await form.file("image")
            return await images_answer(service, storage, request, body, body.to_request(image))
        except InvalidRequest as error:
            return answer(failure(named_as_sent(error)))
        except Exception as error:
            return answer(failure(error))

    return router


def named_as_sent(error: InvalidRequest) -> InvalidRequest:
    """An error of a variation's picture, which is the file `image` to who sent it."""
    within = "ip_adapter.image.0"
    if error.param != within:
        return error
    return InvalidRequest(str(error).replace(within, "image"), "image")


async def images_answer(
    service: Service,
    storage: Storage | None,
    request: Request,
    body: ImagesRequestBody,
    asked: ImageRequest,
) -> Response:
    """The images that were asked for: all at once, or as events."""
    by_url = body.response_format == "url"
    if by_url and storage is None:
        raise InvalidRequest(
            "this service stores no files: ask for response_format b64_json, or configure "
            "`storage` in the args of the application",
            "response_format",
        )
    if by_url and body.stream:
        raise InvalidRequest(
            "events carry their images: with stream, response_format is b64_json",
            "response_format",
        )
    asked = seeded(asked, idempotency_key(request))
    if body.stream:
        return await stream_images(service, body, asked, caller_of(request))
    result = await service.generate(asked, caller_of(request))
    output_format = body.output_format
    base_url = str(request.base_url).rstrip("/")

    async def deliver(pixels: Pixels, seed: int) -> ImageBody:
        quality = body.output_compression
        if storage is None or not by_url:
            text = await asyncio.to_thread(encode_base64, pixels, output_format, quality)
            return ImageBody(b64_json=text, seed=seed)
        data = await asyncio.to_thread(encode, pixels, output_format, quality)
        url = await storage.put(data, output_format)
        return ImageBody(url=base_url + url if url.startswith("/") else url, seed=seed)

    images = await asyncio.gather(*map(deliver, result.images, result.seeds))
    made = ImagesBody(
        created=int(time.time()),
        model=result.model,
        output_format=output_format,
        size=f"{result.width}x{result.height}",
        data=images,
        usage=usage_body(result.usage),
    )
    return JSONResponse(made.model_dump(exclude_none=True))
