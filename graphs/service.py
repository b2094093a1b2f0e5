"""The graph of the `tcd` application: the ingress, which finds the model applications."""

from ray import serve
from ray.serve import Application

from configs.app import ServiceArgs
from deployments.ingress.deployment import Ingress

INGRESS = serve.deployment(
    name="Ingress",
    max_ongoing_requests=1000,
    graceful_shutdown_timeout_s=300,
    health_check_period_s=2,
    ray_actor_options={"num_cpus": 0.1},
)(Ingress)


def build(args: ServiceArgs) -> Application:
    """`import_path: graphs.service:build` of the application named `tcd`."""
    return INGRESS.bind(args)
