"""The Serve shell around the service: HTTP for the world, methods for other Ray applications.

tcd = serve.get_app_handle("tcd")
result = await tcd.generate.remote(ImageRequest("a red ball"))
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from configs.app import ServiceArgs
from deployments.contracts.jobs import (
    ImageRequest,
    ImageResult,
    StreamEvent,
    VideoRequest,
    VideoResult,
)
from deployments.contracts.routes import Router
from deployments.ingress.http.app import make_app
from deployments.ingress.request.assembly import Assembler
from deployments.ingress.request.catalogue import Catalogue
from deployments.ingress.request.pictures import Pictures
from deployments.ingress.request.service import Service


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
        catalogue = Catalogue(directory)
        self._following = asyncio.get_running_loop().create_task(catalogue.follow())
        self._service = Service(args, catalogue, Assembler(Pictures(args), maps, route))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return make_app(self._service, self._videos, self._args)

    async def generate(self, request: ImageRequest) -> ImageResult:
        """Makes the images of a request. Cancelling the call cancels the work."""
        return await self._service.generate(request)

    async def stream(self, request: ImageRequest) -> AsyncIterator[StreamEvent]:
        """Progress, partial and finished images as they come, then `Completed`. Call it with
        `handle.options(stream=True)`."""
        async for event in self._service.stream(request):
            yield event

    async def animate(self, request: VideoRequest) -> VideoResult:
        """Makes a video, and waits for it. Cancelling the call cancels the work."""
        return await self._service.animate(request, lambda _: None)
