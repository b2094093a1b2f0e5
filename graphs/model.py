"""The graph of one model application: one diffusion deployment, reached by its handle."""

import os

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from configs.app import ModelArgs
from deployments.diffusion.deployment import Diffusion
from graphs.limits import LASTING, MAX_ONGOING_REQUESTS

ROUTER = "deployments.diffusion.router.AdapterAffinityRouter"
DIFFUSION = serve.deployment(
    name="Diffusion",
    # The engine has a queue of its own and refuses what it cannot take, with the time to wait.
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    # While no replica runs, each caller keeps so many.
    max_queued_requests=256,
    request_router_config={
        "request_router_class": ROUTER,
        "request_routing_stats_period_s": 2.0,
    },
    ray_actor_options={"num_cpus": 1},
    **LASTING,
)(Diffusion)


class Entrance:
    """What leads to a model behind Serve's own HAProxy. Nobody goes through it, and so it has no
    replica: Ray lets an application's ingress deployment have no router but Serve's there, also
    where no route leads to the application."""

    def __init__(self, model: DeploymentHandle[object]) -> None:
        del model


ENTRANCE = serve.deployment(
    name="Entrance",
    autoscaling_config={"min_replicas": 0, "max_replicas": 1},
    ray_actor_options={"num_cpus": 0},
)(Entrance)


def build(args: ModelArgs) -> Application:
    """`import_path: graphs.model:build` of an application named `model-<name>`."""
    model = DIFFUSION.bind(args)
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        return ENTRANCE.bind(model)
    return model
