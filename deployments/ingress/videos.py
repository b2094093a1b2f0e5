"""Videos as jobs: made in the background, asked for by id.

One replica keeps them all, in memory: what is done is kept for a while and within a budget, and
is gone when the replica restarts.
"""

import asyncio
import time
import uuid
from dataclasses import dataclass, field, replace

from ray.serve.handle import DeploymentHandle

from configs.app import ServiceArgs
from deployments.contracts.errors import InvalidRequest, NotFound, QueueFull
from deployments.contracts.jobs import (
    Caller,
    Progress,
    VideoRequest,
    VideoResult,
)
from deployments.contracts.places import Places
from deployments.contracts.refusal import refusing
from deployments.contracts.routes import Router
from deployments.contracts.videos import (
    VideoCard,
    VideoError,
    VideoFormat,
    VideosBody,
    VideoVariant,
)
from deployments.ingress.answer.metadata import metadata_of
from deployments.ingress.answer.stills import (
    SPRITESHEET_TYPE,
    THUMBNAIL_TYPE,
    spritesheet,
    thumbnail,
)
from deployments.ingress.answer.video_files import VIDEO_TYPES, encode_video
from deployments.ingress.front import Front
from deployments.ingress.http.failures import failure
from deployments.ingress.request.budget import pictures_of
from deployments.ingress.request.pictures import name_of
from deployments.ingress.request.recipes import named_controls, named_ip_adapters
from deployments.ingress.request.service import NOBODY

MIB = 2**20
SAMPLED = 95  # per cent: sampling is done; the rest is decoding and encoding
FULL_RETRY_MS = 10_000


Asked = tuple[VideoRequest, VideoFormat, bool]  # the last: with metadata
Files = dict[VideoVariant, tuple[bytes, str]]  # each with its media type


@dataclass
class _Video:
    """A job and what came of it.

    Attributes:
        asked: with digests instead of pictures.
        key: the idempotency key that it was asked with.
    """

    card: VideoCard
    asked: Asked
    key: str | None
    caller: Caller
    files: Files = field(default_factory=dict, repr=False)
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(len(data) for data, _ in self.files.values())


class Videos:
    """Makes videos, and remembers them.

    Where a method takes `owner`, only videos of the caller of that name exist; `None`: all do.
    """

    def __init__(
        self,
        args: ServiceArgs,
        maps: DeploymentHandle[object],
        directory: DeploymentHandle[object],
        route: Router,
    ) -> None:
        self._args = args
        self._front = Front(args, maps, directory, route)
        self._service, self._quota = self._front.service, self._front.quota
        self._videos: dict[str, _Video] = {}

    @refusing
    async def create(
        self,
        request: VideoRequest,
        output_format: VideoFormat,
        key: str | None = None,
        caller: Caller = NOBODY,
        metadata: bool = True,
    ) -> VideoCard:
        """Takes a job; it starts at once, unless it has been asked with the same `key`. With
        `metadata` its file says how it was made.

        Refused with `QueueFull` if too many are unfinished (a caller who has less than its share
        of `max_videos` may go beyond them), and for what `Service.check_video` raises.
        """
        asked = (await asyncio.to_thread(_without_pictures, request), output_format, metadata)
        if (known := self._known(key, caller, asked)) is not None:
            return known.card
        await self._quota.keys.renew()
        model = await self._service.check_video(request, caller)
        if (known := self._known(key, caller, asked)) is not None:  # asked twice at once
            return known.card
        unfinished = [(v.caller, 1) for v in self._videos.values() if v.task is not None]
        if not Places(self._args.max_videos, unfinished).allow(caller):
            raise QueueFull(f"{len(unfinished)} videos are unfinished already", FULL_RETRY_MS)
        sized = request.width is not None
        card = VideoCard(
            id=f"video_{uuid.uuid4().hex}",
            created_at=int(time.time()),
            status="queued",
            model=model,
            prompt=request.prompt,
            size=f"{request.width}x{request.height}" if sized else None,
            seconds=f"{request.num_frames / request.fps:g}",
            num_frames=request.num_frames,
            fps=request.fps,
            output_format=output_format,
        )
        video = self._videos[card.id] = _Video(card, asked, key, caller)
        video.task = asyncio.create_task(self._make(video, request))
        return video.card

    @refusing
    async def get(self, video_id: str, owner: str | None = None) -> VideoCard:
        """How a job stands."""
        return self._find(video_id, owner).card

    @refusing
    async def page(
        self, after: str | None, limit: int, newest_first: bool, owner: str | None = None
    ) -> VideosBody:
        """Jobs in order of creation, from the one behind `after` on."""
        self._forget_old()
        cards = [v.card for v in self._videos.values() if owner in (None, v.caller.name)]
        if newest_first:
            cards.reverse()
        ids = [card.id for card in cards]
        if after is not None and after not in ids:
            raise NotFound(f"video {after!r} does not exist", "after")
        start = 0 if after is None else ids.index(after) + 1
        shown = cards[start : start + limit]
        return VideosBody(
            data=shown,
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
            has_more=start + limit < len(cards),
        )

    @refusing
    async def cancel(self, video_id: str, owner: str | None = None) -> VideoCard:
        """Stops a job at its next step; one that has ended stays as it is."""
        return (await self._cancelled(video_id, owner)).card

    @refusing
    async def delete(self, video_id: str, owner: str | None = None) -> None:
        """Stops a job if it runs, and forgets it."""
        await self._cancelled(video_id, owner)
        self._videos.pop(video_id, None)

    @refusing
    async def content(
        self, video_id: str, owner: str | None = None, variant: VideoVariant = "video"
    ) -> tuple[bytes, str]:
        """A file of a job that is completed, and its media type."""
        video = self._find(video_id, owner)
        if video.card.status != "completed":
            raise InvalidRequest(
                f"video {video_id!r} is {video.card.status}; only a completed one has content",
                "video_id",
            )
        return video.files[variant]

    def _known(self, key: str | None, caller: Caller, asked: Asked) -> _Video | None:
        """The video that a caller has asked for with this idempotency key before."""
        self._forget_old()
        for video in self._videos.values():
            if key is not None and (video.key, video.caller.name) == (key, caller.name):
                if video.asked != asked:
                    raise InvalidRequest(
                        "this Idempotency-Key came with another request before", "idempotency-key"
                    )
                return video
        return None

    async def _make(self, video: _Video, request: VideoRequest) -> None:
        def progressed(event: Progress) -> None:
            done = SAMPLED * event.step // event.steps
            video.card = video.card.model_copy(update={"status": "in_progress", "progress": done})

        try:
            result = await self._service.animate(request, progressed, video.caller)
            video.files = await asyncio.to_thread(_files, result, video.asked)
            height, width = result.frames.shape[1:3]
            made = {"seed": result.seed, "model": result.model, "size": f"{width}x{height}"}
            self._end(video, {"status": "completed", "progress": 100, **made})
        except asyncio.CancelledError:
            self._end(video, {"status": "cancelled"})
        except Exception as error:
            body = failure(error).body.error
            told = VideoError(code=body.code or "failed", message=body.message)
            self._end(video, {"status": "failed", "error": told})

    def _end(self, video: _Video, update: dict[str, object]) -> None:
        now = int(time.time())
        expires = now + int(self._args.video_ttl_s)
        times = {"completed_at": now, "expires_at": expires}
        video.card = video.card.model_copy(update={**times, **update})
        video.task = None
        self._forget_old()

    async def _cancelled(self, video_id: str, owner: str | None) -> _Video:
        video = self._find(video_id, owner)
        if video.task is not None:
            video.task.cancel()
            await asyncio.gather(video.task, return_exceptions=True)
        return video

    def _find(self, video_id: str, owner: str | None) -> _Video:
        self._forget_old()
        video = self._videos.get(video_id)
        if video is None or owner not in (None, video.caller.name):
            raise NotFound(f"video {video_id!r} does not exist", "video_id")
        return video

    def _forget_old(self) -> None:
        """Drops what has expired, and the oldest files above the budget."""
        now = time.time()
        ended = {i: v for i, v in self._videos.items() if v.task is None and v.card.expires_at}
        total = sum(video.size for video in ended.values())
        for video_id, video in ended.items():
            expired = (video.card.expires_at or 0) <= now
            if expired or total > self._args.video_cache_mb * MIB:
                total -= video.size
                del self._videos[video_id]


def _files(result: VideoResult, asked: Asked) -> Files:
    """What is kept of a video."""
    _, output_format, written = asked
    metadata = None
    if written and result.recipe is not None:
        metadata = metadata_of(result.recipe, result.seed, output_format)
    data = encode_video(result.frames, result.fps, output_format, metadata)
    return {
        "video": (data, VIDEO_TYPES[output_format]),
        "thumbnail": (thumbnail(result.frames), THUMBNAIL_TYPE),
        "spritesheet": (spritesheet(result.frames), SPRITESHEET_TYPE),
    }


def _without_pictures(request: VideoRequest) -> VideoRequest:
    """A request to be compared with others long after: of its pictures, the digests."""
    names = {
        param: name_of(image.encode() if isinstance(image, str) else image)
        for param, image in pictures_of(request).items()
    }
    return replace(
        request,
        image=names.get("image"),
        controls=named_controls(request, names),
        ip_adapter=named_ip_adapters(request, names),
    )
