"""Batches: many requests of a file as jobs of low priority, and their answers as files.

A batch is a job itself. Whoever does it hands its lines in, some at a time, each under an id that
follows from the batch's and its place: whoever goes on with it after a death finds them again.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pydantic import JsonValue, ValidationError

from configs.app import ServiceArgs
from deployments.contracts.api import GenerationsBody, ImagesRequestBody
from deployments.contracts.batches import (
    MAX_LINES,
    BatchBody,
    BatchCard,
    BatchFault,
    BatchFaults,
    BatchLine,
    EditsLineBody,
    RequestCounts,
)
from deployments.contracts.errors import InvalidRequest, NotFound, TcdError
from deployments.contracts.jobs import BACKGROUND
from deployments.ingress.answer.failures import error_of, failure, invalid, passing
from deployments.ingress.answer.metadata import wanted
from deployments.ingress.jobs.asked import ImageAsked
from deployments.ingress.jobs.cards import images_by_url, whole
from deployments.ingress.jobs.desk import Desk, derived_id
from deployments.ingress.jobs.looks import COUNTED_S
from deployments.ingress.request.workers import together
from deployments.jobs.record import JobRecord, SoFar
from deployments.jobs.records import Unreadable

WINDOW_S = 86_400.0
FEWEST, MOST = 4, 64  # lines of a batch that are jobs at a time
LOOK_S = 2.0  # a look at all jobs costs what a picture does
NOT_OF_LINES = ("stream", "async", "webhook_url", "priority")  # theirs is the lowest
MAX_FAULTS = 20  # that are told of one file
FAULTY = "invalid_input_file"
log = logging.getLogger("ray.serve.tcd.jobs")


class Faulty(Exception):
    """The input file of a batch is not to be begun with."""

    def __init__(self, faults: list[BatchFault]) -> None:
        super().__init__(faults)
        self.faults = faults


@dataclass
class _Lines:
    """How the lines of a batch stand, by their place."""

    ended: dict[int, tuple[bool, str]] = field(default_factory=dict)  # completed?, its line

    @property
    def counts(self) -> tuple[int, int]:
        """(completed, failed)"""
        completed = sum(good for good, _ in self.ended.values())
        return completed, len(self.ended) - completed

    def file(self, good: bool) -> bytes:
        """The lines of an output file, or of an error file, in order."""
        lines = [line for _, (is_good, line) in sorted(self.ended.items()) if is_good is good]
        return "".join(line + "\n" for line in lines).encode()


class Told(NamedTuple):
    """What is to be said of a batch, and whether it was called off."""

    said: dict[str, JsonValue]
    called_off: bool


class Batches:
    """Does batches."""

    def __init__(self, args: ServiceArgs, desk: Desk) -> None:
        self._args = args
        self._desk = desk

    async def make(self, record: JobRecord, report: Callable[[SoFar], None]) -> Told:
        """Does a batch, until it is done, called off, or its time is over. Raises `Faulty`."""
        body = batch_body(record)
        lines = read_lines(await self._desk.input_of(record), body.endpoint)
        stands = _Lines()
        open_jobs: dict[int, str] = {}
        record, jobs = await self._desk.with_lines(record)
        for place, line in enumerate(lines):  # of a worker before
            job = jobs.get(_job_id(record, place))
            if job is not None and job.ended:
                stands.ended[place] = _told(record, place, line, job, _is_late(record))
        waiting = deque(one for one in enumerate(lines) if one[0] not in stands.ended)
        at_once = FEWEST
        told = set[int]()  # that they wait
        refused = 0
        while True:
            late = _is_late(record)
            over = late or record.called_off_at is not None
            put_off = 0
            while waiting and len(open_jobs) < at_once and put_off < FEWEST and not over:
                place, line = waiting.popleft()
                try:
                    open_jobs[place] = (await self._handed_in(record, place, line)).id
                except TcdError as error:
                    if passing(failure(error).body.error.code or ""):
                        put_off += 1
                        waiting.append((place, line))  # others may be taken meanwhile
                        if place not in told:
                            log.warning("batch %s, line %d waits: %s", record.id, place + 1, error)
                        told.add(place)
                    else:
                        refused += 1
                        stands.ended[place] = (False, _failed(record, place, line, error))
            record, jobs = await self._desk.with_lines(record, COUNTED_S)
            over = late or record.called_off_at is not None
            jobs |= await self._unseen(open_jobs.values(), jobs, over=over)
            if over:
                jobs = await self._stopped(jobs)
            before = len(stands.ended)
            for place, job_id in list(open_jobs.items()):
                job = jobs.get(job_id)
                if job is None or job.ended or late:
                    del open_jobs[place]
                    stands.ended[place] = _told(record, place, lines[place], job, late)
            # What is handed in at once delays others, and lies about where they have the device.
            going = sum(job.status == "in_progress" for job in jobs.values())
            at_once = min(MOST, going + max(FEWEST, 2 * (len(stands.ended) - before)))
            report(SoFar(95 * len(stands.ended) // len(lines), refused=refused))
            if not open_jobs and (over or len(stands.ended) == len(lines)):
                break
            await asyncio.sleep(LOOK_S)
        places = set(range(len(lines))) - stands.ended.keys()
        rest = {place: _job_id(record, place) for place in places}
        unseen = await self._unseen(rest.values(), jobs, over=True)  # also of a worker before
        jobs |= await self._stopped(unseen)
        for place, job_id in rest.items():
            stands.ended[place] = _told(record, place, lines[place], jobs.get(job_id), late)
        return Told(await self._said(record, stands, late), record.called_off_at is not None)

    async def _unseen(
        self, job_ids: Iterable[str], jobs: Mapping[str, JobRecord], *, over: bool
    ) -> dict[str, JobRecord]:
        """Those of these lines that a look has not shown: each is asked for before it counts as
        gone. One that cannot be read (a later release wrote it) keeps a batch only while its time
        is not `over`."""
        gone = (NotFound, Unreadable) if over else (NotFound,)

        async def asked(job_id: str) -> JobRecord | None:
            with suppress(*gone):
                return await self._desk.get(job_id)
            return None

        found = await together(asked(job_id) for job_id in job_ids if job_id not in jobs)
        return {job.id: job for job in found if job is not None}

    async def _stopped(self, jobs: Mapping[str, JobRecord]) -> dict[str, JobRecord]:
        """These lines of a batch; those that had not ended as they are stopped now, without what is
        gone or cannot be read."""
        stopped = {job.id: job for job in jobs.values() if job.ended}
        for job in jobs.values():
            if not job.ended:
                with suppress(NotFound, Unreadable):
                    stopped[job.id] = await self._desk.cancel(job.id)
        return stopped

    async def _handed_in(self, record: JobRecord, place: int, line: BatchLine) -> JobRecord:
        asked = self._asked(line)
        return await self._desk.submit_line(asked, _job_id(record, place), record)

    def _asked(self, line: BatchLine) -> ImageAsked:
        """A line's request. Raises `InvalidRequest`."""
        for name in NOT_OF_LINES:
            if line.body.get(name):
                raise InvalidRequest(f"{name} is not taken in a batch", name)
        kind = GenerationsBody if line.url == "/v1/images/generations" else EditsLineBody
        try:
            body: ImagesRequestBody = kind.model_validate(line.body)
        except ValidationError as error:
            raise invalid(error) from None
        if body.response_format == "b64_json":
            raise InvalidRequest(
                "a batch answers with the URLs of its images: response_format is url",
                "response_format",
            )
        if isinstance(body, EditsLineBody):
            request = body.to_request(body.image, body.mask)
        else:
            assert isinstance(body, GenerationsBody)
            request = body.to_request()
        return ImageAsked(
            request=replace(request, priority=BACKGROUND),
            output_format=body.output_format,
            output_compression=body.output_compression,
            metadata=wanted(body.metadata, self._args.metadata),
            quality=body.quality or "auto",
            ignored=tuple(body.ignored(moderated=self._args.safety is not None)),
            events=body.EVENTS,
        )

    async def _said(self, record: JobRecord, stands: _Lines, late: bool) -> dict[str, JsonValue]:
        completed, failed = stands.counts
        said: dict[str, JsonValue] = {
            "total": len(stands.ended),
            "completed": completed,
            "failed": failed,
            "expired": late,
        }
        for name, good in (("output", True), ("error", False)):
            data = stands.file(good)
            if data:
                file_id = derived_id("file", f"{record.folder} {name}")
                expires = batch_body(record).output_expires_after
                file = await self._desk.keep_file(
                    data,
                    f"{record.id}_{name}.jsonl",
                    "batch_output",
                    record.caller,
                    file_id,
                    expires,
                )
                said[f"{name}_file_id"] = file.id
        return said


def batch_body(record: JobRecord) -> BatchBody:
    """What a batch was asked for."""
    return BatchBody.model_validate(record.request["body"])


def batch_card(record: JobRecord, lines: Iterable[JobRecord]) -> BatchCard:
    """A batch, as OpenAI shows it. `lines`: its jobs, for the counts of one that goes on."""
    body, outcome = batch_body(record), record.outcome
    status: str = "validating" if record.status == "queued" else record.status
    if record.status == "completed" and outcome.get("expired"):
        status = "expired"
    if record.called_off_at is not None and not record.ended:
        status = "cancelling"
    if record.ended and outcome:
        counts = RequestCounts.model_validate(outcome)
    else:
        jobs = list(lines)
        completed = sum(job.status == "completed" for job in jobs)
        total = record.request["lines"]
        failed = sum(job.ended for job in jobs) - completed + record.refused
        counts = RequestCounts.model_validate(
            {"total": total, "completed": completed, "failed": failed}
        )
    faults = None
    if record.error is not None:
        faults = BatchFaults(data=_faults(record))
    return BatchCard.model_validate(
        {
            "id": record.id,
            "endpoint": body.endpoint,
            "errors": faults,
            "input_file_id": body.input_file_id,
            "status": status,
            "output_file_id": outcome.get("output_file_id"),
            "error_file_id": outcome.get("error_file_id"),
            "created_at": int(record.created_at),
            "expires_at": int(record.created_at + WINDOW_S),
            "in_progress_at": whole(record.started_at),
            "cancelling_at": whole(record.called_off_at),
            "request_counts": counts,
            "metadata": body.metadata,
        }
        | ({f"{status}_at": whole(record.ended_at)} if record.ended else {})
    )


def faults_text(faults: list[BatchFault]) -> str:
    """Faults as a record keeps them."""
    return json.dumps([fault.model_dump() for fault in faults])


def read_lines(data: bytes, endpoint: str) -> list[BatchLine]:
    """The lines of an input file. Raises `Faulty` with all that is wrong with it."""
    faults: list[BatchFault] = []
    lines: list[BatchLine] = []
    seen: set[str] = set()
    texts = [(n, text) for n, text in enumerate(data.split(b"\n"), 1) if text.strip()]
    if not texts:
        faults.append(BatchFault(code="empty_file", message="the file has no lines"))
    if len(texts) > MAX_LINES:
        message = f"the file has {len(texts)} lines; {MAX_LINES} at most"
        raise Faulty([BatchFault(code="too_many_lines", message=message)])
    for number, text in texts:
        try:
            line = BatchLine.model_validate(json.loads(text))
        except ValidationError as error:
            wrong = invalid(error)
            faults.append(_fault(number, "invalid_line", str(wrong), wrong.param))
            continue
        except ValueError:
            faults.append(_fault(number, "invalid_json_line", "this line is not valid JSON"))
            continue
        except RecursionError:
            faults.append(_fault(number, "invalid_json_line", "this line is nested too deep"))
            continue
        if line.url != endpoint:
            said = f"url is {line.url}; the batch's endpoint is {endpoint}"
            faults.append(_fault(number, "mismatched_url", said, "url"))
        if line.custom_id in seen:
            said = f"custom_id {line.custom_id!r} is given twice"
            faults.append(_fault(number, "duplicate_custom_id", said, "custom_id"))
        seen.add(line.custom_id)
        lines.append(line)
    if faults:
        raise Faulty(faults[:MAX_FAULTS])
    return lines


def _fault(line: int, code: str, message: str, param: str | None = None) -> BatchFault:
    return BatchFault(code=code, message=message, param=param, line=line)


def _faults(record: JobRecord) -> list[BatchFault]:
    assert record.error is not None
    if record.error.code != FAULTY:
        return [BatchFault(code=record.error.code, message=record.error.message)]
    return [BatchFault.model_validate(one) for one in json.loads(record.error.message)]


def _is_late(batch: JobRecord) -> bool:
    return time.time() > batch.created_at + WINDOW_S


def _told(
    record: JobRecord, place: int, line: BatchLine, job: JobRecord | None, late: bool
) -> tuple[bool, str]:
    """Whether a line was completed, and its line of a file of answers. `job`: as it has ended;
    `None`: it is gone, or was never begun. `late`: the batch's time is over."""
    if job is not None and job.status == "completed":
        body = images_by_url(job, record.base_url).model_dump(mode="json", exclude_none=True)
        return True, _line(record, place, line, 200, body)
    if job is not None and job.error is not None:
        error = error_of(job.error.code, job.error.message, job.error.param)
        return False, _failed(record, place, line, error)
    if record.called_off_at is not None:
        code, message = "batch_cancelled", "the batch was cancelled before this was done"
    elif late:
        code, message = "batch_expired", "the batch's time was over before this was done"
    elif job is None:
        code, message = "not_found", "its job was deleted"
    else:
        code, message = "cancelled", "it was cancelled"
    return False, json.dumps(
        {
            "id": _line_id(record, place),
            "custom_id": line.custom_id,
            "response": None,
            "error": {"code": code, "message": message},
        }
    )


def _failed(record: JobRecord, place: int, line: BatchLine, error: TcdError) -> str:
    refusal = failure(error)
    return _line(record, place, line, refusal.status, refusal.body.model_dump())


def _line(record: JobRecord, place: int, line: BatchLine, status: int, body: object) -> str:
    # Also of a line that was refused: the id is known before the job is there.
    said = {"status_code": status, "request_id": _job_id(record, place), "body": body}
    return json.dumps(
        {
            "id": _line_id(record, place),
            "custom_id": line.custom_id,
            "response": said,
            "error": None,
        }
    )


def _job_id(record: JobRecord, place: int) -> str:
    """Of the job of a line. A batch may have the id, by its key, of one that was forgotten."""
    return derived_id("image", f"{record.folder} {place}")


def _line_id(record: JobRecord, place: int) -> str:
    return f"batch_req_{record.id.removeprefix('batch_')}_{place}"
