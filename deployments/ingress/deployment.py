"""The Serve shell around the service: HTTP for the world, methods for other Ray applications.

tcd = serve.get_app_handle("tcd")
result = await tcd.generate.remote(ImageRequest("a red ball"))
"""

from collections.abc import AsyncIterator

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from configs.app import ServiceArgs
from deployments.contracts.jobs import (
    Caller,
    ImageRequest,
    ImageResult,
    StreamEvent,
    VideoRequest,
    VideoResult,
)
from deployments.contracts.routes import Router
from deployments.ingress.front import Front
from deployments.ingress.http.app import make_app
from deployments.ingress.request.service import NOBODY


@serve.ingress()
class Ingress:
    """The front of the application."""

    def __init__(
        self,
        args: ServiceArgs,
        maps: DeploymentHandle[object],
        videos: DeploymentHandle[object],
        directory: DeploymentHandle[object],
        route: Router,
    ) -> None:
        self._args = args
        self._videos = videos
        self._front = Front(args, maps, directory, route)
        self._service, self._quota = self._front.service, self._front.quota

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        name = serve.get_replica_context().app_name
        cluster = ray.get_runtime_context().gcs_address  # a node may run several
        return make_app(self._service, self._videos, self._args, self._quota, f"{name}-{cluster}")

    async def generate(self, request: ImageRequest, caller: Caller = NOBODY) -> ImageResult:
        """Makes the images of a request. Cancelling the call cancels the work.

        Args:
            caller: for whom; a name that a key has is held to that key's limits.
        """
        return await self._service.generate(request, caller)

    async def stream(
        self, request: ImageRequest, caller: Caller = NOBODY
    ) -> AsyncIterator[StreamEvent]:
        """Progress, partial and finished images as they come, then `Completed`. Call it with
        `handle.options(stream=True)`."""
        async for event in self._service.stream(request, caller):
            yield event

    async def animate(self, request: VideoRequest, caller: Caller = NOBODY) -> VideoResult:
        """Makes a video, and waits for it. Cancelling the call cancels the work."""
        return await self._service.animate(request, lambda _: None, caller)
