"""The graph of one model application: one diffusion deployment, reached by app handle."""

from ray import serve
from ray.serve import Application

from configs.app import ModelArgs
from deployments.diffusion.deployment import Diffusion

DIFFUSION = serve.deployment(
    name="Diffusion",
    # The engine has a queue of its own and refuses what it cannot take, with the time to wait.
    max_ongoing_requests=1000,
    graceful_shutdown_timeout_s=300,
    health_check_period_s=2,
    ray_actor_options={"num_cpus": 1},
)(Diffusion)


def build(args: ModelArgs) -> Application:
    """`import_path: graphs.model:build` of an application named `model-<name>`."""
    return DIFFUSION.bind(args)
