"""AUTOMATIC1111's API, as far as front ends call it: another language for the same service."""

from fastapi import APIRouter

from configs.app import ServiceArgs
from deployments.ingress.http.a1111.controlnet import controlnet_routes
from deployments.ingress.http.a1111.drawing import drawing_routes
from deployments.ingress.http.a1111.listing import listing_routes
from deployments.ingress.http.bodies import Bodies
from deployments.ingress.http.paths import PING_PATH
from deployments.ingress.request.service import Service
from deployments.ingress.request.workers import Workers


def a1111_routes(
    service: Service, args: ServiceArgs, bodies: Bodies, workers: Workers
) -> APIRouter:
    """Routes over the service; `workers`: threads that encode."""
    router = APIRouter()
    router.include_router(drawing_routes(service, args, bodies, workers))
    router.include_router(listing_routes(service, bodies))
    router.include_router(controlnet_routes(service, bodies, workers))

    @router.get(PING_PATH)
    async def ping() -> dict[str, str]:
        """Whether anything listens here: some front ends ask, without a key."""
        return {}

    return router
