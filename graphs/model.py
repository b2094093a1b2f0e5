"""The graph of one model application: one diffusion deployment, reached by app handle."""

import os

from ray import serve
from ray.serve import Application

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


def build(args: ModelArgs) -> Application:
    """`import_path: graphs.model:build` of an application named `model-<name>`.

    Behind Serve's own HAProxy it has Serve's router: Ray refuses another one in the code of an
    application that requests could reach from outside, though none do.
    """
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        return DIFFUSION.options(request_router_config={}).bind(args)
    return DIFFUSION.bind(args)
