"""The route that shows what runs where."""

from fastapi import APIRouter, Request

from configs.names import Names
from deployments.contracts.errors import Forbidden
from deployments.contracts.figures import EngineFigures
from deployments.contracts.replicas import ModelReplicas, ReplicaCard, ReplicasBody
from deployments.ingress.http.keys import key_of
from deployments.ingress.request.service import Service


def replica_routes(service: Service) -> APIRouter:
    """`GET /v1/replicas`."""
    router = APIRouter()

    @router.get("/v1/replicas", response_model=ReplicasBody)
    async def replicas(request: Request) -> ReplicasBody:
        """Every model with its replicas: the node and device of each, and what it has to do. Asks
        for the key of an `admin`, if there are keys. Starts no replica."""
        key = key_of(request.scope)
        if key is not None and not key.admin:
            raise Forbidden(f"where models run is told to an admin's key; {key.name!r} is none")
        figures = await service.catalogue.figures()
        body = ReplicasBody(data=[])
        for model, outlook in service.catalogue.outlooks().items():
            told = figures.get(model)
            engines = () if told is None else told.engines
            body.data.append(
                ModelReplicas(
                    model=model,
                    availability=outlook.availability,
                    aliases=_aliases(service.names, model),
                    replicas=sorted(map(_card, engines), key=lambda card: card.id),
                    age_s=None if told is None else told.age_s,
                )
            )
        return body

    return router


def _aliases(names: Names, model: str) -> dict[str, float]:
    return {
        alias: shares[model] / sum(shares.values())
        for alias, shares in names.aliases.items()
        if model in shares
    }


def _card(engine: EngineFigures) -> ReplicaCard:
    return ReplicaCard(
        id=engine.replica,
        node=engine.node,
        device=engine.device,
        running_rows=engine.running_rows,
        pending_images=engine.pending_images,
        pending_seconds=engine.pending_seconds,
        images_total=engine.images_total,
        loras_resident=engine.loras_resident,
        device_memory_bytes=engine.device_memory_bytes,
    )
