"""Multipart bodies: files, and fields that are checked like JSON ones."""

import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from deployments.contracts.errors import InvalidRequest
from deployments.ingress.http.failures import invalid

Fields = TypeVar("Fields", bound=BaseModel)
NESTED = ("loras", "motion_loras", "controls", "ip_adapter")  # sent as JSON text


class Form:
    """A received form.

    Args:
        files: names of the files that it may hold.
    """

    def __init__(self, data: FormData, files: Sequence[str] = ()) -> None:
        self._data = data
        self._files = files

    def fields(self, model: type[Fields]) -> Fields:
        """The fields that are no files. Raises `InvalidRequest` naming the one that is wrong."""
        fields: dict[str, object] = {}
        for name, value in self._data.multi_items():
            if name.removesuffix("[]") in self._files:
                continue
            if isinstance(value, UploadFile):
                taken = ", ".join(self._files) or "none"
                raise InvalidRequest(f"{name} is a file; files here: {taken}", name)
            if name in fields:
                raise InvalidRequest(f"{name} is given twice", name)
            fields[name] = _parsed(name, value) if name in NESTED else value
        try:
            return model.model_validate(fields)
        except ValidationError as error:
            raise invalid(error, (*self._files, *model.model_fields)) from error

    async def file(self, name: str) -> bytes:
        """The one file of a name (`name` or `name[]`). Raises `InvalidRequest`."""
        data = await self.optional_file(name)
        if data is None:
            raise InvalidRequest(f"{name} is required, as a file", name)
        return data

    async def optional_file(self, name: str) -> bytes | None:
        """The one file of a name, or `None`."""
        found = [*self._data.getlist(name), *self._data.getlist(f"{name}[]")]
        if not found:
            return None
        if len(found) > 1:
            raise InvalidRequest(f"{len(found)} files are given as {name}; one is needed", name)
        if not isinstance(found[0], UploadFile):
            raise InvalidRequest(f"{name} must be a file", name)
        return await found[0].read()


@asynccontextmanager
async def received_form(request: Request, *files: str) -> AsyncIterator[Form]:
    """The multipart form of a request, which may hold `files`; they are closed at the end of
    the block. Raises `InvalidRequest` if it is none."""
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind != "multipart/form-data":
        raise InvalidRequest(f"the body must be multipart/form-data; it is {kind or 'untyped'}")
    try:
        # A text may be as long as the body, which `BodyLimit` bounds: controls hold pictures.
        data = await request.form(max_part_size=sys.maxsize)
    except HTTPException as error:
        raise InvalidRequest(f"the multipart body cannot be read: {error.detail}") from error
    try:
        yield Form(data, files)
    finally:
        await data.close()


def _parsed(name: str, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} must be JSON text ({error})", name) from error
