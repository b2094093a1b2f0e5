"""The HTTP routes of OpenAI's Files and Batch API."""

import asyncio
from typing import Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from configs.app import ServiceArgs
from deployments.contracts.batches import (
    BatchBody,
    BatchCard,
    BatchesBody,
    FileCard,
    FileForm,
    FilesBody,
)
from deployments.ingress.http.bodies import JSON, Bodies
from deployments.ingress.http.idempotency import idempotency_key
from deployments.ingress.http.jobs import Shown, page_of
from deployments.ingress.http.keys import caller_of, owner_of
from deployments.ingress.jobs.batches import batch_card
from deployments.ingress.jobs.cards import whole
from deployments.ingress.jobs.desk import LINES_TYPE, Desk, Page
from deployments.ingress.jobs.looks import COUNTED_S
from deployments.jobs.record import JobRecord

MIB = 2**20
MOST_FILES = 10_000  # of a page, as OpenAI has it
UNNAMED = "batch.jsonl"


def batch_routes(desk: Desk, shown: Shown, bodies: Bodies, args: ServiceArgs) -> APIRouter:
    """Routes over the jobs of the service that are batches, and their files."""
    router = APIRouter()
    most = args.jobs.max_file_mb * MIB

    @router.post("/v1/files", response_model=FileCard)
    async def upload(request: Request) -> Response:
        """Keeps the lines of a batch. Multipart: `file`, and `purpose`."""
        form = await bodies.form(request, FileForm, "file", most=most)
        data, name = form.file("file"), form.files["file"][0].filename
        fields, caller = form.fields, caller_of(request)
        kept = desk.keep_file(
            data, name or UNNAMED, fields.purpose, caller, expires=fields.expires_after
        )
        return _file(await kept)

    @router.get("/v1/files", response_model=FilesBody)
    async def files(
        request: Request,
        after: str | None = None,
        limit: int = Query(20, ge=1, le=MOST_FILES),
        order: Literal["asc", "desc"] = "desc",
        purpose: Literal["batch", "batch_output"] | None = None,
    ) -> Response:
        """The files of batches, the newest first."""
        found = await desk.page(
            after,
            limit,
            order == "desc",
            owner_of(request),
            "file",
            lambda record: purpose in (None, record.request["purpose"]),
        )
        return Response(await asyncio.to_thread(_files, found), media_type=JSON)

    @router.get("/v1/files/{file_id}/content", response_class=Response)
    async def content(file_id: str, request: Request) -> Response:
        """What is in a file of a batch."""
        record = await desk.get(file_id, owner_of(request), "file")
        return Response(await desk.content(record), media_type=LINES_TYPE)

    @router.delete("/v1/files/{file_id}")
    async def delete(file_id: str, request: Request) -> dict[str, object]:
        """Removes a file of a batch."""
        await desk.delete(file_id, owner_of(request), "file")
        return {"id": file_id, "object": "file", "deleted": True}

    @router.post("/v1/batches", response_model=BatchCard)
    async def begin(request: Request) -> Response:
        """Begins a batch: each line of its input file is a request."""
        body = await bodies.json(request, BatchBody)
        record = await desk.begin_batch(
            body, idempotency_key(request), caller_of(request), shown.base_url(request)
        )
        return await card(record)

    @router.get("/v1/batches", response_model=BatchesBody)
    async def batches(
        request: Request, after: str | None = None, limit: int = Query(20, ge=1, le=100)
    ) -> Response:
        """The batches, the newest first."""
        found = await desk.page(after, limit, True, owner_of(request), "batch", lambda _: True)
        cards = [batch_card(record, found.lines[record.id]) for record in found.jobs]
        return JSONResponse(page_of(BatchesBody, cards, found).model_dump())

    @router.get("/v1/batches/{batch_id}", response_model=BatchCard)
    async def get(batch_id: str, request: Request) -> Response:
        """How a batch stands."""
        return await card(await desk.get(batch_id, owner_of(request), "batch"))

    @router.post("/v1/batches/{batch_id}/cancel", response_model=BatchCard)
    async def cancel(batch_id: str, request: Request) -> Response:
        """Calls a batch off: lines that are being done are stopped at their next step, the others
        are not begun. It is `cancelling` until its files say what became of each."""
        return await card(await desk.cancel(batch_id, owner_of(request), "batch"))

    @router.delete("/v1/batches/{batch_id}")
    async def delete_batch(batch_id: str, request: Request) -> dict[str, object]:
        """Forgets a batch that has ended, with its lines. Its output and error files stay."""
        await desk.delete_batch(batch_id, owner_of(request))
        return {"id": batch_id, "object": "batch", "deleted": True}

    async def card(record: JobRecord) -> Response:
        _, lines = await desk.with_lines(record, COUNTED_S)
        return JSONResponse(batch_card(record, lines.values()).model_dump())

    return router


async def file_by_id(desk: Desk, file_id: str, request: Request) -> Response:
    """`GET /v1/files/{file_id}`, whose path is that of stored pictures, too."""
    return _file(await desk.get(file_id, owner_of(request), "file"))


def file_card(record: JobRecord) -> FileCard:
    """A file of a batch, as OpenAI shows it."""
    (file,) = record.results
    return FileCard.model_validate(
        {
            "id": record.id,
            "bytes": file.size,
            "created_at": int(record.created_at),
            "expires_at": whole(record.expires_at),
            "filename": file.role,
            "purpose": record.request["purpose"],
        }
    )


def _files(found: Page) -> str:
    """A page of files. There may be thousands."""
    cards = [file_card(record) for record in found.jobs]
    return page_of(FilesBody, cards, found).model_dump_json()


def _file(record: JobRecord) -> Response:
    return JSONResponse(file_card(record).model_dump())
