"""The HTTP route of moderations."""

import uuid

from fastapi import APIRouter, Request

from configs.app import SafetyArgs
from deployments.contracts.errors import NotFound
from deployments.contracts.moderations import (
    ModerationResult,
    ModerationsAnswer,
    ModerationsBody,
)
from deployments.ingress.http.bodies import Bodies
from deployments.ingress.http.keys import caller_of
from deployments.ingress.request.service import Service


def moderation_routes(service: Service, bodies: Bodies, args: SafetyArgs | None) -> APIRouter:
    """The route over the service. `args`: of its safety checker, if it has one."""
    router = APIRouter()

    @router.post("/v1/moderations", response_model=ModerationsAnswer)
    async def moderations(request: Request) -> ModerationsAnswer:
        """What the safety checker says of pictures."""
        if args is None:
            raise NotFound("this service has no safety checker (`safety` in its args)")
        body = await bodies.json(request, ModerationsBody)
        verdicts = await service.moderate(body.pictures, caller_of(request))
        return ModerationsAnswer(
            id=f"modr-{uuid.uuid4().hex}",
            model=args.checkpoint,
            results=list(map(ModerationResult.of, verdicts)),
        )

    return router
