"""The graph of the `tcd` application: the ingress, the map store, and the preprocessors.

The directory finds the diffusion deployments, which are applications of their own, by name.
"""

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingPolicy

from configs.app import ServiceArgs
from configs.jobs import TemporaryJobs
from deployments.ingress.deployment import Ingress
from deployments.ingress.directory import Directory
from deployments.ingress.worker import JobWorker
from deployments.jobs.autoscaling import ByOpenJobs
from deployments.jobs.store import JobStore
from deployments.preprocess.canny import Canny
from deployments.preprocess.depth import Depth
from deployments.preprocess.image_encoder import ImageEncoder
from deployments.preprocess.map_store import MapStore
from deployments.preprocess.safety import Safety
from graphs.limits import LASTING, MAX_ONGOING_REQUESTS
from graphs.routing import route

MIB = 2**20

INGRESS = serve.deployment(
    name="Ingress",
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    # What each proxy keeps beside those; the rest gets Serve's own 503.
    max_queued_requests=1000,
    backpressure_config={"status_code": 503, "retry_after_s": 1},
    ray_actor_options={"num_cpus": 0.1},
    **LASTING,
)(Ingress)
JOB_WORKER = serve.deployment(
    name="JobWorker",
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    ray_actor_options={"num_cpus": 0.1},
    logging_config={"enable_access_log": False},  # it is told of every job
    **LASTING,
)(JobWorker)


def job_worker(at_once: int) -> Deployment:
    """Replicas by the jobs that are open, each of which does so many at a time."""
    policy = AutoscalingPolicy(policy_function=ByOpenJobs, policy_kwargs={"at_once": at_once})
    return JOB_WORKER.options(
        autoscaling_config={"min_replicas": 1, "max_replicas": 4, "policy": policy}
    )


JOB_STORE = serve.deployment(
    name="JobStore",
    num_replicas=1,
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    ray_actor_options={"num_cpus": 0.1},
    logging_config={"enable_access_log": False},  # every process asks it all the time
    **LASTING,
)(JobStore).options(graceful_shutdown_timeout_s=2)  # whoever asks it asks the next one
DIRECTORY = serve.deployment(
    name="Directory",
    num_replicas=1,
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    ray_actor_options={"num_cpus": 0.1},
    logging_config={"enable_access_log": False},  # every ingress calls it every second
    user_config={},  # whoever takes his own out of the file goes back to this one
    **LASTING,
)(Directory).options(graceful_shutdown_timeout_s=2)  # who watches it watches the next one
MAP_STORE = serve.deployment(
    name="MapStore",
    num_replicas=1,
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    ray_actor_options={"num_cpus": 0.1},
    **LASTING,
)(MapStore)


def _preprocessor(cls: type, name: str) -> Deployment:
    """Each scales by itself; the Serve config overrides these options by name."""
    return serve.deployment(
        name=name,
        max_ongoing_requests=64,
        max_queued_requests=128,
        autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8},
        ray_actor_options={"num_cpus": 1},
        **LASTING,
    )(cls)


def build(args: ServiceArgs) -> Application:
    """`import_path: graphs.service:build` of the application named `tcd`.

    Its deployments are `Ingress`, `Directory`, `JobWorker`, `JobStore` if jobs have no storage of
    their own, `MapStore`, `Canny`, `Depth` and `Safety` if they are configured, and
    `ImageEncoder-<name>` for every image encoder.
    """
    return graph(args, INGRESS, _preprocessor(Canny, "Canny").bind())


def graph(args: ServiceArgs, ingress: Deployment, canny: Application) -> Application:
    """The same with this ingress and this canny preprocessor."""
    depth = None if args.depth is None else _preprocessor(Depth, "Depth").bind(args.depth)
    encoders = {
        name: _preprocessor(ImageEncoder, f"ImageEncoder-{name}").bind(encoder)
        for name, encoder in args.image_encoders.items()
    }
    safety = None if args.safety is None else _preprocessor(Safety, "Safety").bind(args.safety)
    maps = MAP_STORE.bind(args.map_cache_mb * MIB, canny, depth, encoders)
    directory = DIRECTORY.bind(args)
    store = JOB_STORE.bind() if isinstance(args.jobs.storage, TemporaryJobs) else None
    worker = job_worker(args.jobs.at_once).bind(args, maps, directory, store, route, safety)
    return ingress.bind(args, maps, worker, store, directory, route, safety)
