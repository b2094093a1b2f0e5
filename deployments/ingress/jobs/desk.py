"""Where jobs are handed in and asked for: what HTTP routes and Python handles do with them."""

import asyncio
import hashlib
import math
import secrets
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar

from configs.app import ServiceArgs
from deployments.contracts.batches import BatchBody, ExpiresAfter
from deployments.contracts.errors import (
    InvalidRequest,
    NotFound,
    StorageUnavailable,
)
from deployments.contracts.figures import JobFigures
from deployments.contracts.jobs import Caller
from deployments.contracts.usage import KeyJobs
from deployments.ingress.answer.failures import passing
from deployments.ingress.jobs.asked import (
    Asked,
    ImageAsked,
    VideoAsked,
    digest_of,
    file_of,
    with_pictures,
)
from deployments.ingress.jobs.calling import check_webhook
from deployments.ingress.jobs.cards import listed, positions, request_of
from deployments.ingress.jobs.figures import by_owner, figures_of
from deployments.ingress.jobs.files import JobFiles
from deployments.ingress.jobs.looks import COUNTED_S, Looks, in_time
from deployments.ingress.jobs.room import Room
from deployments.ingress.keys.keyring import Keyring
from deployments.ingress.request.assembly import Outline
from deployments.ingress.request.course import current
from deployments.ingress.request.pictures import Brought
from deployments.ingress.request.service import NOBODY, Service
from deployments.ingress.request.workers import Workers, together
from deployments.jobs.objects import Objects
from deployments.jobs.queue import JobQueue, same
from deployments.jobs.record import JobFile, JobRecord, Kind
from deployments.jobs.records import FILES, Unreadable
from deployments.tracing.spans import traceparent

POLL_S = (0.03, 0.5)  # between two looks at a job that is waited for: more as it lasts longer
POLL_GROWTH = 1.3
MAX_KEY = 255  # characters
PICTURE = "picture"  # suffix of the files of a request's pictures
THREADS = 32
FIGURES_S = 3.0  # for the storage, where an answer without jobs is better than none
AWAY_S = 30.0  # that it may be away while somebody waits for a job
KEEPALIVE_S = 15.0
LINES_TYPE = "application/jsonl"
INPUT = "input"  # of a batch, in its record

Answer = TypeVar("Answer")
Nudge = Callable[[], None]  # tells a worker that there is something to do


class Page(NamedTuple):
    """Some of the jobs. `positions`: how many are to be begun before each image or video that is
    queued, by id; `lines`: the jobs of those that are batches, by batch."""

    jobs: Sequence[JobRecord]
    has_more: bool
    positions: Mapping[str, int]
    lines: Mapping[str, Sequence[JobRecord]]


class Desk:
    """The jobs of a service, as its callers see them.

    Where a method takes `owner`, only jobs of the caller of that name exist; `None`: all do. Where
    it takes `kind`, only jobs of that kind. Every method may raise `StorageUnavailable`.

    Args:
        nudge: tells a worker that there is something to do.
        queue: that this process has already over these objects.
    """

    def __init__(
        self,
        args: ServiceArgs,
        service: Service,
        keys: Keyring,
        objects: Objects,
        nudge: Nudge = lambda: None,
        queue: JobQueue | None = None,
    ) -> None:
        self._args = args
        self._service = service
        self._keys = keys
        self._queue = queue or JobQueue(objects)
        self._files = JobFiles(objects)
        self._nudge = nudge
        self._io = Workers("work on jobs", threads=THREADS, waiting=None)
        # With threads of its own: a crowd that waits for its answers does not delay who hands in.
        self._looks = Looks(self._queue)
        self._room = Room(args, keys, self._looks)

    async def submit(
        self,
        asked: Asked,
        key: str | None = None,
        caller: Caller = NOBODY,
        *,
        awaited: bool = False,
        base_url: str = "",
    ) -> JobRecord:
        """Accepts a job, or finds the one that was asked for with the same idempotency `key`.

        Raises what `Service.check_job` does; `Conflict`, if the key came with another request;
        `QueueFull`, if too many jobs of its kind have not ended (a caller who has less than its
        share may go beyond them); `RateLimited`, if what is kept for the caller takes as many bytes
        as its key may have.

        Args:
            awaited: somebody waits for it at an open connection.
            base_url: of the service, for whoever is told of the job.
        """
        kind: Kind = "video" if isinstance(asked, VideoAsked) else "image"
        digest = await self._run(digest_of, asked)
        job_id = id_of(kind, caller, key)
        if key is not None and (known := await self._answered(job_id)) is not None:
            return same(known, digest)
        if asked.webhook_url is not None:
            check_webhook(asked.webhook_url, self._args.jobs.webhooks)
        await self._keys.renew()
        outline = await self._service.check_job(asked.request, caller)
        size = sum(_size(picture) for picture in outline.pictures.values())
        async with self._room.taken(kind, caller, job_id, size):
            job = self._record(
                kind,
                caller,
                job_id,
                digest=digest,
                awaited=awaited,
                webhook_url=asked.webhook_url,
                base_url=base_url,
                priority=asked.request.priority,
            )
            return await self._accepted(job, asked, outline)

    async def submit_line(self, asked: ImageAsked, job_id: str, batch: JobRecord) -> JobRecord:
        """The same for a line of a batch, which has no limit of its own and is kept as long."""
        if (known := await self._known(job_id)) is not None:
            return known
        outline = await self._service.check_job(asked.request, batch.caller)
        job = self._record(
            "image",
            batch.caller,
            job_id,
            base_url=batch.base_url,
            priority=asked.request.priority,
            batch=batch.id,
            keep_s=batch.keep_s,
        )
        return await self._accepted(job, asked, outline)

    async def _accepted(self, job: JobRecord, asked: Asked, outline: Outline) -> JobRecord:
        """Keeps a job with its pictures, settled: it means the same however often it is done."""
        settled = replace(asked.request, model=outline.model, seed=outline.job.seeds[0])
        pictures = await self._kept_pictures(job.folder, outline.pictures.values())
        names = {param: file.name for param, file in pictures.items()}
        kept = asked.model_copy(update={"request": with_pictures(settled, names)})
        job = job.model_copy(
            update={
                "request": request_of(kept, names),
                "pictures_size": sum(file.size for file in pictures.values()),
            }
        )
        return await self._added(job, pictures.values())

    async def _added(self, job: JobRecord, files: Collection[JobFile]) -> JobRecord:
        """A job that is accepted with these files, or the one that was asked for at once."""
        accepted = await self._run(self._queue.add, job)
        if accepted.folder != job.folder:
            await together(self._run(self._files.remove, job.folder, f.name) for f in files)
        if not accepted.ended:
            self._nudge()
        if accepted.kind != "file":
            current().accepted(accepted.id, awaited=job.awaited)
        return accepted

    def _record(self, kind: Kind, caller: Caller, job_id: str, **fields: Any) -> JobRecord:
        """A new job. `fields`: further ones of it."""
        usual: dict[str, Any] = {
            "digest": "",
            "request": {},
            "folder": fresh_folder(),
            "created_at": time.time(),
            "keep_s": self._keep_s(kind, caller),
            "traceparent": traceparent(),
        }
        return JobRecord(
            id=job_id, kind=kind, owner=caller.name, weight=caller.weight, **usual | fields
        )

    async def begin_batch(
        self, body: BatchBody, key: str | None, caller: Caller, base_url: str
    ) -> JobRecord:
        """Accepts a batch. Raises `NotFound` if there is no such input file."""
        digest = hashlib.sha256(body.model_dump_json(exclude_none=True).encode()).hexdigest()
        job_id = id_of("batch", caller, key)
        if key is not None and (known := await self._answered(job_id)) is not None:
            return same(known, digest)
        file = await self.get(body.input_file_id, caller.name or None, "file", "input_file_id")
        if file.request.get("purpose") != "batch":
            raise InvalidRequest(f"file {file.id!r} was not uploaded for a batch", "input_file_id")
        data = await self.content(file)
        async with self._room.taken("batch", caller, job_id, len(data)):
            folder = fresh_folder()  # the file may be deleted, or expire, before the batch is done
            kept = await self._run(self._files.write, folder, INPUT, data, "jsonl", LINES_TYPE)
            lines = sum(bool(line.strip()) for line in data.split(b"\n"))
            job = self._record(
                "batch",
                caller,
                job_id,
                digest=digest,
                request={"body": body.model_dump(mode="json"), INPUT: kept.name, "lines": lines},
                folder=folder,
                pictures_size=kept.size,
                base_url=base_url,
            )
            return await self._added(job, [kept])

    async def input_of(self, batch: JobRecord) -> bytes:
        """The lines of a batch. Raises `NotFound`."""
        return await self._run(self._files.read, batch, str(batch.request[INPUT]))

    async def keep_file(
        self,
        data: bytes,
        name: str,
        purpose: Literal["batch", "batch_output"],
        caller: Caller,
        file_id: str | None = None,
        expires: ExpiresAfter | None = None,
    ) -> JobRecord:
        """Keeps a file of lines; with `file_id` the one that is there of that id, if it is."""
        file_id = file_id or id_of("file", caller, None)
        room = self._room.taken("file", caller, file_id, len(data))
        async with room if purpose == "batch" else nullcontext():
            folder = fresh_folder()
            file = await self._run(self._files.write, folder, name, data, "jsonl", LINES_TYPE)
            now = time.time()
            job = self._record(
                "file",
                caller,
                file_id,
                request={"purpose": purpose},
                folder=folder,
                status="completed",
                results=(file,),
                created_at=now,
                ended_at=now,
            )
            if expires is not None:
                job = job.model_copy(update={"keep_s": min(job.keep_s, expires.seconds)})
            return await self._added(job, [file])

    async def content(self, record: JobRecord) -> bytes:
        """What is in a file of lines. Raises `NotFound`."""
        return await self._run(self._files.read, record, record.results[0].name)

    async def with_lines(
        self, batch: JobRecord, fresh_s: float = 0.0
    ) -> tuple[JobRecord, dict[str, JobRecord]]:
        """A batch as it stands now (as it was, if it is gone), and its jobs by id; as `jobs` of the
        queue takes `fresh_s`."""

        def read(every: Sequence[JobRecord]) -> tuple[JobRecord, dict[str, JobRecord]]:
            now = next((job for job in every if job.id == batch.id), batch)
            return now, {job.id: job for job in every if job.batch == batch.id}

        return await self._looks.at_all(read, fresh_s)

    async def get(
        self,
        job_id: str,
        owner: str | None = None,
        kind: Kind | None = None,
        param: str | None = None,
    ) -> JobRecord:
        """A job as it stands. Raises `NotFound`, naming `param`."""
        record = await self._known(job_id)
        found = record is not None and (
            record.kind in ("image", "video") if kind is None else record.kind == kind
        )
        if record is None or not found or owner not in (None, record.owner):
            what = kind or "job"
            raise NotFound(f"{what} {job_id!r} does not exist", param or f"{what}_id")
        return record

    async def page(
        self,
        after: str | None,
        limit: int,
        newest_first: bool,
        owner: str | None = None,
        kind: Kind | None = None,
        may: Callable[[JobRecord], bool] = listed,
    ) -> Page:
        """Jobs in the order of their creation, from the one behind `after` on; those of which `may`
        says so."""

        def read(every: Sequence[JobRecord]) -> Page:
            jobs = [
                job
                for job in every
                if owner in (None, job.owner) and kind in (None, job.kind) and may(job)
            ]
            if newest_first:
                jobs.reverse()
            ids = [job.id for job in jobs]
            if after is not None and after not in ids:
                raise NotFound(f"{kind or 'job'} {after!r} does not exist", "after")
            start = 0 if after is None else ids.index(after) + 1
            shown = jobs[start : start + limit]
            more = start + limit < len(jobs)
            return Page(shown, more, _positions_of(shown, every), _lines_of(shown, every))

        return await self._looks.at_all(read)

    async def position(self, record: JobRecord) -> int | None:
        """How many jobs are to be begun before one that is queued."""
        if record.status != "queued":
            return None
        return (await self._looks.at_open(positions)).get(record.id)

    async def cancel(
        self, job_id: str, owner: str | None = None, kind: Kind | None = None
    ) -> JobRecord:
        """Stops a job at its next step; one that has ended stays as it is. A batch is called off:
        its worker stops its lines, and ends it with what there is."""
        record = await self.get(job_id, owner, kind)
        stop = self._queue.call_off if record.kind == "batch" else self._queue.cancel
        stopped = await self._run(stop, record.id)
        self._nudge()
        return stopped

    async def delete(self, job_id: str, owner: str | None = None, kind: Kind | None = None) -> None:
        """Stops a job if it is being done, and forgets it with all its files."""
        record = await self.get(job_id, owner, kind)
        await self._run(self._queue.delete, record.id)
        self._nudge()

    async def delete_batch(self, batch_id: str, owner: str | None = None) -> None:
        """Forgets a batch that has ended, with its copy of its file and its lines' jobs; the files
        of its answers stay. Raises `InvalidRequest` of one that goes on."""
        record = await self.get(batch_id, owner, "batch")
        if not record.ended:
            raise InvalidRequest(
                f"batch {batch_id!r} is {record.status}; cancel it, and delete it when it ends",
                "batch_id",
            )
        await self._forget_batch(record)

    async def figures(self) -> JobFigures | None:
        """How all jobs stand; `None`: the storage does not answer in time."""
        return await self._soon(lambda jobs: figures_of(jobs, time.time()))

    async def by_owner(self) -> Mapping[str, KeyJobs] | None:
        """What is kept for each key; `None`: the storage does not answer in time."""
        return await self._soon(by_owner)

    async def _soon(self, count: Callable[[Sequence[JobRecord]], Answer]) -> Answer | None:
        """What is counted of all jobs, in a thread: they may be many."""
        try:
            async with asyncio.timeout(FIGURES_S):
                return await self._looks.at_all(count, COUNTED_S)
        except (TimeoutError, StorageUnavailable):
            return None

    async def file(self, record: JobRecord, role: str) -> tuple[bytes, str]:
        """A file that came of a job, and its media type. Raises `InvalidRequest` if it is not
        completed, `NotFound` if there is no such file."""
        if record.status != "completed":
            param = "video_id" if record.kind == "video" else "job_id"
            raise InvalidRequest(
                f"{record.kind} {record.id!r} is {record.status}; only a completed one has content",
                param,
            )
        for file in record.results:
            if file.role == role:
                return await self._run(self._files.read, record, file.name), file.media_type
        roles = ", ".join(file.role for file in record.results)
        raise NotFound(f"job {record.id!r} has no {role!r}; it has: {roles}", "index")

    async def named_file(self, job_id: str, name: str) -> tuple[bytes, JobFile]:
        """A file that came of a job, by its name, which is a secret."""
        record = await self.get(job_id)
        for file in record.results:
            if secrets.compare_digest(file.name.encode(), name.encode()):
                return await self._run(self._files.read, record, name), file
        raise NotFound(f"job {job_id!r} has no such file", "name")

    async def previews(
        self, record: JobRecord, told: set[str]
    ) -> AsyncGenerator[tuple[JobFile, bytes]]:
        """What shows how far a job is, with its contents, but for the names that were `told`, to
        which it adds; without what is gone, for the job has begun anew."""
        for file in record.previews:
            if file.name not in told:
                told.add(file.name)
                with suppress(NotFound):
                    yield file, await self._run(self._files.read, record, file.name)

    async def ended(self, record: JobRecord, within_s: float | None) -> JobRecord:
        """A job when it has ended. Raises `TimeoutError`, or `NotFound` if it is deleted."""
        async with asyncio.timeout(within_s):
            while not record.ended:
                record = await self.changed(record)
        return record

    async def followed(self, record: JobRecord) -> AsyncGenerator[JobRecord | None]:
        """A job as it stands, and again whenever that has changed, until it has ended; `None` when
        nothing has for a while."""
        yield record
        while not record.ended:
            found = await self.changed(record, KEEPALIVE_S)
            yield None if found.shows_as(record) else found
            record = found

    async def changed(self, record: JobRecord, within_s: float = math.inf) -> JobRecord:
        """A job at another revision than this; at the same, if that lasts for longer. A storage
        that is away for a while is waited for. Raises `NotFound` if it is deleted, also if there is
        another of its id by now."""
        now = asyncio.get_running_loop().time
        pause_s, most_s = POLL_S
        until, heard = now() + within_s, now()
        while True:
            try:
                found = await self._looks.at_one(record.id)
                heard = now()
                if found.folder != record.folder:  # its key may be used again, by another request
                    raise NotFound(f"job {record.id!r} does not exist any more", "job_id")
                if found.revision != record.revision or now() > until:
                    return found
            except StorageUnavailable:
                if now() > heard + AWAY_S:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * POLL_GROWTH, most_s)

    def _keep_s(self, kind: Kind, caller: Caller) -> float:
        """From a job's end until it is forgotten."""
        entry = self._keys.named(caller.name)
        if entry is not None and entry.keep_s is not None:
            return entry.keep_s
        return self._args.video_ttl_s if kind == "video" else self._args.jobs.keep_s

    async def forget(self, record: JobRecord) -> None:
        """Forgets this very job, if it is there: its key may be used again."""
        await self._run(self._queue.forget, record)

    async def forget_passing(self, record: JobRecord) -> bool:
        """The same of one that failed with what passes; of a batch with its lines, which are not of
        the next batch of that key. Whether it did."""
        passes = record.error is not None and passing(record.error.code)
        if passes:
            await (self._forget_batch if record.kind == "batch" else self.forget)(record)
        return passes

    async def _forget_batch(self, batch: JobRecord) -> None:
        """Its lines first: a batch without them can be forgotten again. One that cannot be read
        stays."""

        async def forgotten(line: JobRecord) -> None:
            with suppress(Unreadable):
                await self.forget(line)

        _, lines = await self.with_lines(batch)
        await together(forgotten(line) for line in lines.values())
        await self.forget(batch)

    async def _run(self, call: Callable[..., Answer], *args: object) -> Answer:
        return await in_time(self._io.run(call, *args))

    async def _known(self, job_id: str) -> JobRecord | None:
        try:
            return await self._run(self._queue.get, job_id)
        except NotFound:
            return None

    async def _answered(self, job_id: str) -> JobRecord | None:
        """The job that was asked for with a key before. One that failed with what passes is
        forgotten."""
        known = await self._known(job_id)
        return None if known is None or await self.forget_passing(known) else known

    async def _kept_pictures(self, folder: str, pictures: Iterable[Brought]) -> dict[str, JobFile]:
        """The files of a request's pictures, by field."""

        def keep(one: Brought) -> JobFile:
            data = file_of(one.content)
            return self._files.write(folder, one.param, data, PICTURE, "application/octet-stream")

        files = await together(self._run(keep, one) for one in pictures)
        return {file.role: file for file in files}


def _positions_of(jobs: Iterable[JobRecord], every: Sequence[JobRecord]) -> Mapping[str, int]:
    """Of those that are queued, by id. Of a batch nobody asks for it."""
    queued = [job.id for job in jobs if job.status == "queued" and job.kind != "batch"]
    if not queued:
        return {}
    places = positions(every)
    return {job_id: places[job_id] for job_id in queued}


def _lines_of(
    jobs: Iterable[JobRecord], every: Iterable[JobRecord]
) -> Mapping[str, Sequence[JobRecord]]:
    """The jobs of those that are batches, by batch."""
    lines: dict[str, list[JobRecord]] = {job.id: [] for job in jobs if job.kind == "batch"}
    if lines:
        for job in every:
            if job.batch in lines:
                lines[job.batch].append(job)
    return lines


def _size(picture: Brought) -> int:
    """Bytes, at most, of the file that is kept of a picture."""
    content = picture.content
    return len(content) if isinstance(content, bytes) else content.nbytes


def check_key(key: str) -> None:
    """Raises `InvalidRequest` for what is no idempotency key."""
    if not 1 <= len(key) <= MAX_KEY:
        raise InvalidRequest(
            f"Idempotency-Key must have 1 to {MAX_KEY} characters", "idempotency-key"
        )


def id_of(kind: Kind, caller: Caller, key: str | None) -> str:
    """The same for the same key of the same caller."""
    return derived_id(kind, str(uuid.uuid4()) if key is None else f"{caller.name}\0{key}")


def derived_id(kind: Kind, text: str) -> str:
    """The same for the same text."""
    prefix = "file-" if kind == "file" else f"{kind}_"
    return f"{prefix}{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def fresh_folder() -> str:
    """Of one job alone, even if another had its id before."""
    return f"{FILES}{uuid.uuid4().hex}/"
