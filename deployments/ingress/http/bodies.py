"""Bodies of requests: watched while they come, and read off the event loop if they are large.

JSON and forms end in the same models and the same errors.
"""

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from configs.app import ServiceArgs
from deployments.contracts.api import wire_names
from deployments.contracts.errors import MAX_QUOTED, Cancelled, InvalidRequest
from deployments.ingress.answer.failures import invalid
from deployments.ingress.http.forms import Form, FormReader, boundary_of
from deployments.ingress.http.json_text import JsonWatch, parsed
from deployments.ingress.request.budget import longest_data_url
from deployments.ingress.request.workers import Workers

SMALL = 64 * 2**10  # bytes that are read in less than a millisecond
UNPACKED = ("", "identity")  # content-encodings
FORM, JSON = "multipart/form-data", "application/json"

Read = TypeVar("Read")
Body = TypeVar("Body", bound=BaseModel)


class Bodies:
    """Reads bodies into models.

    Args:
        workers: threads for bodies that are not small.
    """

    def __init__(self, args: ServiceArgs, workers: Workers) -> None:
        self._longest = longest_data_url(args)
        self._max_file_bytes = args.max_image_bytes
        self._workers = workers

    async def json(self, request: Request, model: type[Body], *, bare: bool = False) -> Body:
        """`bare`: pictures may come as base64 alone. Raises `InvalidRequest` naming the field that
        is wrong."""
        kind = _kind(request)
        if not kind.endswith("json"):
            raise InvalidRequest(
                f"the body must be JSON, as content-type: {JSON}; it is {kind or 'nothing'}"
            )
        watch = JsonWatch(self._longest, bare)
        chunks: list[bytes] = []

        def see(chunk: bytes) -> None:
            watch.see(chunk)
            chunks.append(chunk)

        size = await _received(request, see)
        return await self._off_the_loop(size, lambda: read_json(b"".join(chunks), model))

    async def form(
        self, request: Request, model: type[Body], *files: str, most: int | None = None
    ) -> Form[Body]:
        """A multipart form, which may hold `files` beside the fields of the model, each of at most
        so many bytes, or as many as a picture may have. Raises `InvalidRequest` naming the field
        that is wrong."""
        kind = _kind(request)
        if kind != FORM:
            raise InvalidRequest(f"the body must be {FORM}; it is {kind or 'untyped'}")
        boundary = boundary_of(request.headers["content-type"])
        reader = FormReader(boundary, model, files, most or self._max_file_bytes, self._longest)
        return await self._off_the_loop(await _received(request, reader.see), reader.form)

    async def either(self, request: Request, model: type[Body], *files: str) -> Form[Body]:
        """A form, which may hold `files`, or JSON."""
        if _kind(request) == FORM:
            return await self.form(request, model, *files)
        return Form(await self.json(request, model), {})

    async def _off_the_loop(self, size: int, read: Callable[[], Read]) -> Read:
        return read() if size <= SMALL else await self._workers.run(read)


def read_json(body: bytes, model: type[Body]) -> Body:
    """JSON text as a model. Raises `InvalidRequest` naming the field that is wrong."""
    try:
        return model.model_validate(parsed(body))
    except ValidationError as error:
        raise invalid(error, tuple(wire_names(model))) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error


async def _received(request: Request, see: Callable[[bytes], None]) -> int:
    """Shows a body to `see` as it comes; its size. A packed one is refused. Once it is refused, the
    rest is read and thrown away: most clients never see an answer that comes while they send."""
    size = 0
    refused: InvalidRequest | None = None
    codings = ",".join(request.headers.getlist("content-encoding")).split(",")
    packed = [coding.strip() for coding in codings if coding.strip().lower() not in UNPACKED]
    if packed:
        how = packed[0][:MAX_QUOTED]
        refused = InvalidRequest(f"the body must be sent as it is, not as content-encoding {how}")
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if refused is None:
                try:
                    see(chunk)
                except InvalidRequest as error:
                    refused = error
    except ClientDisconnect as error:
        raise Cancelled("the client has gone") from error
    if refused is not None:
        raise refused
    return size


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
