"""What a config says of how a model's replicas are chosen."""

from collections.abc import Iterator
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.schema import DeploymentSchema

from deployments.diffusion.routing.policy import Worth
from graphs.model import ROUTER


def misrouted(deployment: DeploymentSchema, place: str) -> Iterator[str]:
    """What our router would refuse when the first request comes."""
    config = _of(deployment)
    if config is None or not _is_ours(config):
        return
    try:
        Worth(**config.get("request_router_kwargs", {}))
    except (TypeError, ValueError) as error:
        fields = ", ".join(Worth.__dataclass_fields__)
        yield (
            f"{place}.request_router_config.request_router_kwargs: {error}; there are {fields}, "
            "in seconds"
        )


def routing_advice(deployment: DeploymentSchema, place: str) -> Iterator[str]:
    """What goes back to Serve's own router without saying so."""
    config = _of(deployment)
    if config is None:
        return
    if _is_ours(config) and "request_routing_stats_period_s" not in config:
        yield (
            f"{place}.request_router_config: it is replaced as a whole; without "
            "request_routing_stats_period_s: 2 replicas report every 10 s"
        )
    if "request_router_class" not in config:
        yield (
            f"{place}.request_router_config: it is replaced as a whole; without "
            f"request_router_class: {ROUTER} replicas are chosen without regard to adapters"
        )


def _is_ours(config: dict[str, Any]) -> bool:
    return str(config.get("request_router_class")).replace(":", ".") == ROUTER


def _of(deployment: DeploymentSchema) -> dict[str, Any] | None:
    """As the file says it; `None`: it says nothing."""
    said = deployment.request_router_config
    if isinstance(said, RequestRouterConfig):
        return said.model_dump(exclude_unset=True)
    return said if isinstance(said, dict) else None
