"""The Serve shell around the service: HTTP for the world, methods for other Ray applications.

tcd = serve.get_app_handle("tcd")
result = await tcd.generate.remote(ImageRequest("a red ball"))
"""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from configs.app import ServiceArgs
from deployments.contracts.job_cards import JobCard, JobResult
from deployments.contracts.jobs import (
    Caller,
    ImageRequest,
    ImageResult,
    StreamEvent,
    VideoRequest,
    VideoResult,
)
from deployments.contracts.routes import Router
from deployments.contracts.videos import VideoFormat
from deployments.ingress.front import Front
from deployments.ingress.http.app import make_app
from deployments.ingress.jobs.courses import called
from deployments.ingress.jobs.desk import Desk
from deployments.ingress.jobs.handed import Handed
from deployments.ingress.request.service import NOBODY
from deployments.jobs.configured import make_objects

# Objects that come and stay before the collector looks: a request in flight is hundreds of them,
# and leaves no cycles behind. By Python's 700 a crowd's were looked at again and again.
YOUNG = 50_000
NUDGE_S = 5.0  # a worker that is told of a job has so long to hear it; it looks by itself, too
log = logging.getLogger("ray.serve.tcd.jobs")


@serve.ingress()
class Ingress:
    """The front of the application."""

    def __init__(
        self,
        args: ServiceArgs,
        maps: DeploymentHandle[object],
        worker: DeploymentHandle[object],
        store: DeploymentHandle[object] | None,
        directory: DeploymentHandle[object],
        route: Router,
        safety: DeploymentHandle[object] | None,
    ) -> None:
        gc.set_threshold(YOUNG)
        self._args = args
        self._worker = worker
        self._nudging: asyncio.Task[None] | None = None
        self._front = Front(args, maps, directory, route, safety)
        self._service, self._quota = self._front.service, self._front.quota
        objects = make_objects(args.jobs, store)
        self._desk = Desk(args, self._service, self._quota.keys, objects, self._nudge)
        self._handed = Handed(args, self._desk)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        name = serve.get_replica_context().app_name
        cluster = ray.get_runtime_context().gcs_address  # a node may run several
        return make_app(self._service, self._desk, self._args, self._quota, f"{name}-{cluster}")

    async def generate(self, request: ImageRequest, caller: Caller = NOBODY) -> ImageResult:
        """Makes the images of a request. Cancelling the call cancels the work.

        Args:
            caller: for whom; a name that a key has is held to that key's limits.
        """
        with called("generate", caller, self._args):
            return await self._service.generate(request, caller)

    async def stream(
        self, request: ImageRequest, caller: Caller = NOBODY
    ) -> AsyncIterator[StreamEvent]:
        """Progress, partial and finished images as they come, then `Completed`. Call it with
        `handle.options(stream=True)`."""
        with called("stream", caller, self._args):
            async for event in self._service.stream(request, caller):
                yield event

    async def animate(self, request: VideoRequest, caller: Caller = NOBODY) -> VideoResult:
        """Makes a video, and waits for it. Cancelling the call cancels the work."""
        with called("animate", caller, self._args):
            return await self._service.animate(request, lambda _: None, caller)

    async def submit(
        self,
        request: ImageRequest | VideoRequest,
        caller: Caller = NOBODY,
        *,
        idempotency_key: str | None = None,
        video_format: VideoFormat = "mp4",
        webhook_url: str | None = None,
    ) -> JobCard:
        """Accepts a job, which is done whatever becomes of this call, of this process, or of the
        one that calls. With the key of an earlier call it is that call's job. Images become PNG
        files.

        Raises what `generate` refuses a request with; `Conflict`, if the key came with another
        request; `QueueFull`, if too many jobs have not ended.
        """
        with called("submit", caller, self._args):
            return await self._handed.submit(
                request, caller, idempotency_key, video_format, webhook_url
            )

    async def result(
        self, job_id: str, caller: Caller = NOBODY, timeout_s: float | None = None
    ) -> JobResult:
        """What came of a job, as soon as it has ended. Raises the `TcdError` that it failed with,
        `Cancelled`, `NotFound`, or `DeadlineExceeded` if it has not ended by then."""
        return await self._handed.result(job_id, caller, timeout_s)

    async def events(self, job_id: str, caller: Caller = NOBODY) -> AsyncIterator[JobCard]:
        """A job as it stands, and again whenever that has changed, until it has ended. Call it with
        `handle.options(stream=True)`."""
        async for card in self._handed.events(job_id, caller):
            yield card

    async def cancel(self, job_id: str, caller: Caller = NOBODY) -> JobCard:
        """Stops a job at its next step; one that has ended stays as it is. Raises `NotFound`."""
        return await self._handed.cancel(job_id, caller)

    async def delete(self, job_id: str, caller: Caller = NOBODY) -> None:
        """Stops a job if it is being done, and forgets it with all that came of it. Raises
        `NotFound`."""
        await self._handed.delete(job_id, caller)

    def _nudge(self) -> None:
        if self._nudging is None or self._nudging.done():
            self._nudging = asyncio.create_task(self._tell_a_worker())

    async def _tell_a_worker(self) -> None:
        try:
            async with asyncio.timeout(NUDGE_S):
                await self._worker.nudge.remote()
        except Exception as error:
            log.info("no worker could be told of a job: %r", error)
