"""How a job is done: its request walks through the graph, and what comes of it becomes files."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from random import SystemRandom
from types import TracebackType
from typing import TypeVar

from pydantic import JsonValue

from configs.app import TIMEOUT_S
from deployments.contracts.api import ImageBody, ImagesBody
from deployments.contracts.errors import (
    DeadlineExceeded,
    EngineFault,
    NotReady,
    QueueFull,
    StorageUnavailable,
    WentAway,
)
from deployments.contracts.jobs import (
    BACKGROUND,
    Completed,
    FailedImage,
    FinishedImage,
    PartialImage,
    Progress,
    VideoResult,
)
from deployments.ingress.answer.failures import failure
from deployments.ingress.answer.media import MEDIA_TYPES, Encoding
from deployments.ingress.answer.metadata import metadata_of
from deployments.ingress.answer.provenance import Provenance
from deployments.ingress.answer.stills import (
    SPRITESHEET_TYPE,
    THUMBNAIL_TYPE,
    spritesheet,
    thumbnail,
)
from deployments.ingress.answer.usage import usage_body
from deployments.ingress.answer.video_files import VIDEO_TYPES, encode_video
from deployments.ingress.jobs.asked import ImageAsked, VideoAsked, with_pictures
from deployments.ingress.jobs.batches import WINDOW_S, Batches
from deployments.ingress.jobs.cards import asked_of, pictures_in
from deployments.ingress.jobs.files import JobFiles
from deployments.ingress.request.course import stage
from deployments.ingress.request.deaths import wait_for_room
from deployments.ingress.request.service import Service
from deployments.ingress.request.workers import Workers
from deployments.jobs.record import JobFile, JobRecord, SoFar

SAMPLED = 95  # per cent: sampling is done; the rest is decoding and encoding
MOST_DEATHS = 3  # of replicas under one job, each of which was asked twice
PAUSE_S = 1.0

Report = Callable[[SoFar], None]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Answer:
    """What came of a job. `called_off`: of a batch that was."""

    results: tuple[JobFile, ...]
    outcome: dict[str, JsonValue]
    called_off: bool = False


@dataclass
class _Images:
    """The images of a job as they come, by index."""

    previews: list[JobFile] = field(default_factory=list)
    steps: dict[int, float] = field(default_factory=dict)
    finished: dict[int, FinishedImage] = field(default_factory=dict)
    failed: dict[int, FailedImage] = field(default_factory=dict)
    completed: Completed | None = None


class Making:
    """Does jobs.

    Args:
        io: threads that read and write files.
        provenance: what signs the files; `None`: nothing.
    """

    def __init__(
        self,
        service: Service,
        batches: Batches,
        files: JobFiles,
        timeout_s: float,
        io: Workers,
        provenance: Provenance | None = None,
    ) -> None:
        self._service = service
        self._batches = batches
        self._files = files
        self._timeout_s = timeout_s
        self._io = io
        self._provenance = provenance
        self._encoders = Workers("work on answers", waiting=None)

    async def make(self, record: JobRecord, report: Report) -> Answer:
        """Does a job within its time, which begins when the device does: what is not to be had yet
        is waited for, a replica, the storage, and room in the queue for as long as it takes. Raises
        a `TcdError` if it cannot be done."""
        if record.kind == "batch":
            told = await persevering(WINDOW_S, lambda: self._batches.make(record, report))
            return Answer((), told.said, told.called_off)
        if record.attempts > 1:  # what those before have left
            await self._io.run(self._files.keep, record, pictures_in(record).values())
        asked = asked_of(record)
        timeout_s = asked.request.timeout_s or self._timeout_s
        work_s = timeout_s
        if asked.request.priority == BACKGROUND and asked.request.timeout_s is None:
            work_s = TIMEOUT_S  # it has few turns while others ask

        async def attempt() -> Answer:
            async with _Limit(work_s) as limit:
                if isinstance(asked, VideoAsked):
                    return await self._video(record, asked, report, limit)
                return await self._images(record, asked, report, limit)

        return await persevering(timeout_s, attempt)

    async def _images(
        self, record: JobRecord, asked: ImageAsked, report: Report, limit: "_Limit"
    ) -> Answer:
        request = with_pictures(asked.request, await self._pictures(record))
        encoding = Encoding(
            asked.output_format, asked.output_compression, asked.metadata, self._provenance
        )
        so_far = _Images()
        async with aclosing(self._service.stream(request, record.caller, TIMEOUT_S)) as events:
            async for event in events:
                limit.begin()
                match event:
                    case Progress():
                        so_far.steps[event.image_index] = event.step / event.steps
                    case PartialImage():
                        data = await self._encoders.run(encoding.file, event.pixels)
                        role = f"{event.image_index}.{event.partial_index}.{event.step}"
                        so_far.previews.append(await self._kept(record, role, data, encoding))
                    case FinishedImage():
                        so_far.finished[event.image_index] = event
                    case FailedImage():
                        so_far.failed[event.image_index] = event
                    case Completed():
                        so_far.completed = event
                share = sum(so_far.steps.values()) / request.n
                report(SoFar(int(SAMPLED * share), tuple(so_far.previews)))
        if so_far.completed is None:
            raise WentAway("the model's replica ended before the images were done")
        if not so_far.finished:
            raise so_far.failed[min(so_far.failed)].error
        with stage("encode"):
            results = [
                await self._kept(record, str(index), await self._encoded(encoding, image), encoding)
                for index, image in sorted(so_far.finished.items())
            ]
        return Answer(tuple(results), _said(asked, so_far, so_far.completed))

    async def _video(
        self, record: JobRecord, asked: VideoAsked, report: Report, limit: "_Limit"
    ) -> Answer:
        request = replace(
            with_pictures(asked.request, await self._pictures(record)), timeout_s=TIMEOUT_S
        )

        def progressed(event: Progress) -> None:
            limit.begin()
            report(SoFar(SAMPLED * event.step // event.steps))

        result = await self._service.animate(request, progressed, record.caller)
        with stage("encode"):
            files = await self._encoders.run(_video_files, result, asked, self._provenance)
        results = [
            await self._written(record.folder, role, data, suffix, media_type)
            for role, data, suffix, media_type in files
        ]
        height, width = result.frames.shape[1:3]
        said: dict[str, JsonValue] = {
            "seed": result.seed,
            "model": result.model,
            "size": f"{width}x{height}",
        }
        return Answer(tuple(results), said)

    async def _pictures(self, record: JobRecord) -> dict[str, bytes]:
        return {
            param: await self._io.run(self._files.read, record, name)
            for param, name in pictures_in(record).items()
        }

    async def _encoded(self, encoding: Encoding, image: FinishedImage) -> bytes:
        return await self._encoders.run(encoding.file, image.pixels, image.recipe, image.seed)

    async def _kept(self, record: JobRecord, role: str, data: bytes, encoding: Encoding) -> JobFile:
        kind = encoding.output_format
        return await self._written(record.folder, role, data, kind, MEDIA_TYPES[kind])

    async def _written(
        self, folder: str, role: str, data: bytes, suffix: str, media_type: str
    ) -> JobFile:
        """A new file. It is there or not when this ends, however it ends."""
        write = asyncio.ensure_future(
            self._io.run(self._files.write, folder, role, data, suffix, media_type)
        )
        try:
            return await asyncio.shield(write)
        except asyncio.CancelledError:
            await asyncio.gather(write, return_exceptions=True)
            raise


class _Limit:
    """The time of a job: it runs from `begin` on. Raises `DeadlineExceeded`."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._timeout = asyncio.timeout(None)

    def begin(self) -> None:
        """The device works on it; again: nothing."""
        if self._timeout.when() is None:
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._timeout_s)

    async def __aenter__(self) -> "_Limit":
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise DeadlineExceeded(f"the job was not done within {self._timeout_s:g} s") from None


async def persevering(timeout_s: float, make: Callable[[], Awaitable[Made]]) -> Made:
    """What `make` comes to, asked again for what passes: as often as it takes for want of room, and
    for `timeout_s` in all for anything else."""
    patience_s = timeout_s
    deaths = 0
    while True:
        began = time.monotonic()
        try:
            return await make()
        except QueueFull as error:
            await wait_for_room(error)
        except (NotReady, EngineFault, StorageUnavailable) as error:
            deaths += isinstance(error, WentAway | EngineFault)
            patience_s -= time.monotonic() - began + PAUSE_S
            if deaths == MOST_DEATHS or patience_s <= 0:
                raise
            error.__traceback__ = None  # as `wait_for_room` does
            await asyncio.sleep(PAUSE_S * SystemRandom().uniform(0.8, 1.2))


def _said(asked: ImageAsked, images: _Images, completed: Completed) -> dict[str, JsonValue]:
    """The answer, in which an image's index stands where its URL will."""
    first = next(iter(images.finished.values()))
    height, width = first.pixels.shape[:2]
    body = ImagesBody(
        created=int(time.time()),
        model=completed.model,
        quality=asked.quality,
        output_format=asked.output_format,
        ignored=list(asked.ignored),
        size=f"{width}x{height}",
        data=[_entry(index, images, first) for index in range(asked.request.n)],
        usage=usage_body(completed.usage),
    )
    return body.model_dump(mode="json", exclude_none=True)


def _entry(index: int, images: _Images, first: FinishedImage) -> ImageBody:
    """Image i of n has the seed of the first and i."""
    seed = first.seed - first.image_index + index
    if index in images.finished:
        return ImageBody(url=str(index), seed=seed)
    return ImageBody(error=failure(images.failed[index].error).body.error, seed=seed)


def _video_files(
    result: VideoResult, asked: VideoAsked, provenance: Provenance | None
) -> Iterable[tuple[str, bytes, str, str]]:
    """(role, contents, suffix, media type) of what is kept of a video."""
    kind, metadata = asked.output_format, None
    if asked.metadata and result.recipe is not None:
        metadata = metadata_of(result.recipe, result.seed, kind)
    data = encode_video(result.frames, result.fps, kind, metadata)
    files = (
        ("video", data, kind, VIDEO_TYPES[kind]),
        ("thumbnail", thumbnail(result.frames), "webp", THUMBNAIL_TYPE),
        ("spritesheet", spritesheet(result.frames), "jpeg", SPRITESHEET_TYPE),
    )
    if provenance is None:
        return files
    return tuple(
        (role, provenance.signed(data, media_type, result.recipe), suffix, media_type)
        for role, data, suffix, media_type in files
    )
