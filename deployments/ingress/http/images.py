"""The HTTP routes of images: generations, edits, variations."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from configs.app import ServiceArgs
from deployments.contracts.api import (
    EditsForm,
    GenerationsBody,
    ImageBody,
    ImagesBody,
    ImagesRequestBody,
    VariationsForm,
)
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import MAX_SEEN, ImageRequest, ImageResult, Pixels
from deployments.contracts.recipe import Recipe
from deployments.ingress.answer.failures import failure
from deployments.ingress.answer.media import Encoding
from deployments.ingress.answer.metadata import wanted
from deployments.ingress.answer.provenance import make_provenance
from deployments.ingress.answer.storage import Storage
from deployments.ingress.answer.usage import usage_body
from deployments.ingress.http.bodies import JSON, Bodies
from deployments.ingress.http.failures import named_as_sent
from deployments.ingress.http.idempotency import idempotency_key, seeded
from deployments.ingress.http.jobs import Shown
from deployments.ingress.http.json_text import filled
from deployments.ingress.http.keys import caller_of
from deployments.ingress.http.once import Once
from deployments.ingress.http.streams import StreamAnswer, stream_images
from deployments.ingress.jobs.asked import ImageAsked
from deployments.ingress.jobs.desk import Desk
from deployments.ingress.request.course import stage
from deployments.ingress.request.service import Service
from deployments.ingress.request.workers import Workers, together

MAX_IMAGES = 1 + MAX_SEEN  # of an edit


def image_routes(
    service: Service,
    storage: Storage | None,
    bodies: Bodies,
    workers: Workers,
    jobs: "Jobs",
    args: ServiceArgs,
) -> APIRouter:
    """Routes over the service.

    Args:
        storage: where images go that are wanted by URL.
        workers: threads that encode.
    """
    router = APIRouter()
    answers = Answers(service, storage, workers, jobs, args)

    @router.post("/v1/images/generations", response_model=ImagesBody)
    async def generations(request: Request) -> Response:
        """Text to image."""
        body = await bodies.json(request, GenerationsBody)
        return await answers.images(request, body, body.to_request())

    @router.post("/v1/images/edits", response_model=ImagesBody)
    async def edits(request: Request) -> Response:
        """A picture made anew: inside a mask, or as a whole. Multipart: `image`, further ones to
        resemble, optional `mask`, and the fields of `EditsForm`."""
        form = await bodies.form(request, EditsForm, "image", "mask", "markup")
        if form.files.get("markup"):
            raise InvalidRequest("markup is not read here; mask says what is made anew", "markup")
        asked = form.fields.to_request(
            form.several("image", MAX_IMAGES), form.optional_file("mask")
        )
        return await answers.images(request, form.fields, asked)

    @router.post("/v1/images/variations", response_model=ImagesBody)
    async def variations(request: Request) -> Response:
        """Pictures that resemble one: by IP-Adapter. Multipart: `image`, and the fields of
        `VariationsForm`."""
        try:
            form = await bodies.form(request, VariationsForm, "image")
            asked = form.fields.to_request(form.file("image"))
            return await answers.images(request, form.fields, asked)
        except InvalidRequest as error:
            raise named_as_sent(error, "ip_adapter.image.0", "image") from error

    return router


@dataclass(frozen=True)
class Jobs:
    """What becomes of requests that are made jobs."""

    desk: Desk
    shown: Shown
    once: Once


class Answers:
    """Answers to requests for images."""

    def __init__(
        self,
        service: Service,
        storage: Storage | None,
        workers: Workers,
        jobs: Jobs,
        args: ServiceArgs,
    ) -> None:
        self._service = service
        self._storage = storage
        self._workers = workers
        self._jobs = jobs
        self._metadata = args.metadata
        self._moderated = args.safety is not None
        self._provenance = make_provenance(args.provenance)

    async def images(
        self, request: Request, body: ImagesRequestBody, asked: ImageRequest
    ) -> Response:
        """The images that were asked for: all at once, as events, or as a job."""
        key = idempotency_key(request)
        if body.later or key is not None:
            return await self._job(request, body, asked, key)
        by_url = self._by_url(body)
        written = wanted(body.metadata, self._metadata)
        encoding = Encoding(body.output_format, body.output_compression, written, self._provenance)
        if body.stream:
            answer = StreamAnswer(body, encoding, body.ignored(moderated=self._moderated))
            return await stream_images(self._service, request, asked, answer, self._workers)
        result = await self._service.generate(asked, caller_of(request))
        base_url = str(request.base_url).rstrip("/")
        with stage("encode"):
            made = await together(
                self._made(encoding, pixels, result.recipe, seed, base_url if by_url else None)
                for pixels, seed in zip(result.images, result.seeds, strict=True)
            )
        told = ImagesBody(
            created=int(time.time()),
            model=result.model,
            quality=body.quality or "auto",
            output_format=body.output_format,
            ignored=body.ignored(moderated=self._moderated),
            size=f"{result.width}x{result.height}",
            data=[],
            usage=usage_body(result.usage),
        )
        text = await self._workers.run(_with_images, told, _in_order(made, result))
        return Response(text, media_type=JSON)

    def _by_url(self, body: ImagesRequestBody) -> bool:
        """Whether the answer names its images by URL. Raises `InvalidRequest` if that cannot be."""
        by_url = body.by_url(self._storage is not None)
        if by_url and self._storage is None:
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
        return by_url

    async def _job(
        self, request: Request, body: ImagesRequestBody, asked: ImageRequest, key: str | None
    ) -> Response:
        """A request that is made a job: its card if it is to be done `async`, else its answer.
        Images of a job can be had by URL on every service."""
        job = ImageAsked(
            request=seeded(asked, key),
            output_format=body.output_format,
            output_compression=body.output_compression,
            metadata=wanted(body.metadata, self._metadata),
            inline=body.response_format == "b64_json" if body.later else not self._by_url(body),
            quality=body.quality or "auto",
            ignored=tuple(body.ignored(moderated=self._moderated)),
            events=body.EVENTS,
            webhook_url=body.webhook_url,
        )
        if body.later:
            record = await self._jobs.desk.submit(
                job, key, caller_of(request), base_url=self._jobs.shown.base_url(request)
            )
            return await self._jobs.shown.card(request, record, status=202)
        assert key is not None
        answered = self._jobs.once.stream if body.stream else self._jobs.once.images
        return await answered(request, job, key)

    async def _made(
        self,
        encoding: Encoding,
        pixels: Pixels,
        recipe: Recipe | None,
        seed: int,
        base_url: str | None,
    ) -> bytes:
        """An image's entry in an answer, as JSON; with `base_url` the image is stored."""
        if self._storage is None or base_url is None:
            return await self._workers.run(_inline, encoding, pixels, recipe, seed)
        data = await self._workers.run(encoding.file, pixels, recipe, seed)
        url = await self._storage.put(data, encoding.output_format)
        return _json(ImageBody(url=base_url + url if url.startswith("/") else url, seed=seed))


def _inline(encoding: Encoding, pixels: Pixels, recipe: Recipe | None, seed: int) -> bytes:
    """The entry of an image that the answer carries."""
    return _json(ImageBody(b64_json=encoding.text(pixels, recipe, seed), seed=seed))


def _in_order(made: Sequence[bytes], result: ImageResult) -> list[bytes]:
    """The entries of all images of a request by their index, of those that failed with their
    error. Image i of n has the seed of the first and i."""
    errors = {one.image_index: failure(one.error).body.error for one in result.failed}
    indices = range(len(made) + len(errors))
    seed = result.seeds[0] - next(index for index in indices if index not in errors)
    entries = iter(made)
    return [
        _json(ImageBody(error=errors[index], seed=seed + index))
        if index in errors
        else next(entries)
        for index in indices
    ]


def _with_images(told: ImagesBody, images: Sequence[bytes]) -> bytes:
    """An answer as JSON."""
    return filled(_json(told), "data", images)


def _json(body: BaseModel) -> bytes:
    return body.model_dump_json(exclude_none=True).encode()
