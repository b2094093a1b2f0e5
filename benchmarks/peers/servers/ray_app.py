"""What both applications on Ray Serve share: the ingress of Ray's tutorial, and how it is run."""

import signal

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from benchmarks.peers.servers.options import Options
from benchmarks.peers.servers.wire import Body, answer
from benchmarks.peers.traffic import PATH

MAX_ONGOING = 1024  # of the ingress: all clients at once
web = FastAPI()


@serve.ingress(web)
class APIIngress:
    """HTTP in front of the model."""

    def __init__(self, model: DeploymentHandle[object]) -> None:
        self._model = model

    @web.post(PATH)
    async def generate(self, body: Body) -> dict[str, object]:
        """One image."""
        return answer(await self._model.generate.remote(body))


def run(model: type, options: Options) -> None:
    """Serves a class with `generate` on a Ray instance of its own until it is interrupted."""
    variables = {"OMP_NUM_THREADS": str(options.threads)}
    deployment = serve.deployment(
        num_replicas=options.workers,
        max_ongoing_requests=options.ongoing,
        ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": variables}},
    )(model)
    ingress = serve.deployment(max_ongoing_requests=MAX_ONGOING)(APIIngress)
    ray.init(address="local", log_to_driver=True, include_dashboard=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=options.port))
    quiet = LoggingConfig(enable_access_log=False)
    application: Application = ingress.bind(deployment.bind(options))
    serve.run(application, logging_config=quiet)
    signal.pause()
