"""What the parts of a Serve config say of each other: whether they agree, what would do better."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

from ray.serve._private.constants import DEFAULT_HEALTH_CHECK_PERIOD_S
from ray.serve.schema import (
    DeploymentSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from configs.app import (
    FolderStorage,
    Limits,
    ModelArgs,
    ModelUserConfig,
    ServiceArgs,
    TemporaryStorage,
)
from configs.jobs import FolderJobs, TemporaryJobs
from configs.names import Names, NamesConfig
from configs.needs import ip_adapter_key
from configs.sources import PROJECT_ROOT
from graphs.check.accepted import DIRECTORY, MODEL, SERVICE, read
from graphs.check.routing import misrouted, routing_advice
from graphs.check.scaling import mispooled, misscaled
from graphs.check.tracing import tracing_advice, untraceable
from graphs.limits import GRACE_S, HEALTH_CHECK_TIMEOUT_S, LASTING
from graphs.model import DIFFUSION

# Those that remember for all others: of two, each would know half.
SINGLETONS = (DIRECTORY, "MapStore", "JobStore")
ALWAYS = ("Ingress", DIRECTORY, "MapStore", "JobWorker", "Canny")
HIGHEST_PORT = 65535
PASSED_BY = (DIRECTORY, "JobStore")  # no request passes through them
COUNTED = (DIFFUSION.name, DIRECTORY, "MapStore")  # their figures are told with each health check
KEPT_S = 20.0  # by Ray's metrics, of a gauge that is not told again
Value = TypeVar("Value")


@dataclass(frozen=True)
class _Model:
    """A model application, as far as its `args` and its `user_config` are accepted."""

    place: str
    args: ModelArgs
    config: ModelUserConfig
    diffusion: DeploymentSchema

    @property
    def limits(self) -> Limits:
        """Of its `user_config`."""
        return self.config.limits


def disagreements(config: ServeDeploySchema) -> Iterator[str]:
    """What is wrong with a config whose parts Ray accepts: a line each, with its place.

    Parts that our own schemas refuse are passed over.
    """
    names = {application.name for application in config.applications}
    met: dict[object, str] = {}  # the first application of each model
    for application in config.applications:
        if application.import_path == MODEL:
            first = met.setdefault(application.args.get("name"), application.name)
            yield from _model_application(application, first)
        for deployment in application.deployments:
            yield from misscaled(deployment, f"{application.name}.{deployment.name}")
    yield from untraceable(config)
    models = list(_models(config))
    yield from mispooled((f"{one.place}.{DIFFUSION.name}", one.diffusion) for one in models)
    for model in models:
        yield from _model(model)
        yield from misrouted(model.diffusion, f"{model.place}.{DIFFUSION.name}")
    for application, service in _services(config):
        yield from _service(application, service, names)
        yield from _proxy(config, service)
        for model in models:
            yield from _beside(model, service)


def advice(config: ServeDeploySchema, *, machine: bool = True) -> Iterator[str]:
    """What works as it is, and would do better otherwise: a line each, with its place. `machine`:
    also what nodes must have and this machine has not."""
    models, services = list(_models(config)), list(_services(config))
    if models and not services:
        yield (
            "applications: models, and no service before them: where this file is deployed, none "
            f"answers over HTTP; it is the application of {SERVICE}"
        )
    for model in models:
        yield from _queues(model)
        yield from _gpus(model)
        yield from routing_advice(model.diffusion, f"{model.place}.{DIFFUSION.name}")
    if machine:
        yield from tracing_advice(config)
    for application, service in services:
        yield from _times(config, service)
        if machine:
            yield from not_on_machine(application.name, service)
        yield from _files(application, service)


def _models(config: ServeDeploySchema) -> Iterator[_Model]:
    for application in config.applications:
        if application.import_path == MODEL and (model := _model_of(application)) is not None:
            yield model


def _services(
    config: ServeDeploySchema,
) -> Iterator[tuple[ServeApplicationSchema, ServiceArgs]]:
    for application in config.applications:
        if application.import_path == SERVICE:
            args = read(ServiceArgs, application.args)
            if args is not None:
                yield application, args


def _service(
    application: ServeApplicationSchema, args: ServiceArgs, names: set[str]
) -> Iterator[str]:
    place = application.name
    config = NamesConfig()
    for deployment in application.deployments:
        if deployment.name == DIRECTORY:
            config = read(NamesConfig, _option(deployment, "user_config", {})) or config
    yield from _names(place, args.names, config, names)
    yield from _folders(place, args)
    known = deployments_of(args)
    for deployment in application.deployments:
        where = f"{place}.{deployment.name}"
        if deployment.name not in known:
            yield f"{where}: there is no such deployment; there are {', '.join(known)}"
        several = _option(deployment, "num_replicas", 1) != 1
        scales = _option(deployment, "autoscaling_config", None) is not None
        if deployment.name in SINGLETONS and (several or scales):
            yield f"{where}: one replica remembers for all others; it has no more"


def _folders(place: str, args: ServiceArgs) -> Iterator[str]:
    files, jobs = args.storage, args.jobs.storage
    if not isinstance(files, FolderStorage) or not isinstance(jobs, FolderJobs):
        return
    if PROJECT_ROOT / files.path == PROJECT_ROOT / jobs.path:
        yield (
            f"{place}.args.jobs.storage.path: files by URL are kept in {jobs.path!r}, too "
            "(storage.path); jobs have a folder of their own"
        )


def _names(place: str, said: Names, config: NamesConfig, applications: set[str]) -> Iterator[str]:
    """Names of models beside the models that there are: those of `args`, and what the directory's
    `user_config` makes of them."""
    args, live = f"{place}.args", f"{place}.{DIRECTORY}.user_config"
    try:
        named = said.changed(config)
    except ValueError as error:
        yield f"{live}: {error}"
        return
    for model in named.shares(None):
        if f"model-{model}" not in applications:
            where = args if config.default_model is None else live
            yield (
                f"{where}.default_model: there is no application model-{named.default_model} "
                "in this file"
            )
    for alias, shares in named.aliases.items():
        where = f"{live if alias in config.aliases else args}.aliases.{alias}"
        for model in shares:
            if f"model-{model}" not in applications:
                yield f"{where}: there is no application model-{model} in this file"
        if f"model-{alias}" in applications:
            yield f"{where}: the application model-{alias} has that name"


def deployments_of(args: ServiceArgs) -> tuple[str, ...]:
    """The names of the deployments that `graphs.service` makes of its `args`."""
    depth = () if args.depth is None else ("Depth",)
    store = ("JobStore",) if isinstance(args.jobs.storage, TemporaryJobs) else ()
    safety = () if args.safety is None else ("Safety",)
    encoders = (f"ImageEncoder-{name}" for name in args.image_encoders)
    return (*ALWAYS, *store, *depth, *safety, *encoders)


def _model_application(application: ServeApplicationSchema, first: str) -> Iterator[str]:
    place, named = application.name, application.args.get("name")
    if place != first:
        yield f"{place}.args.name: {named!r} is the model of {first}, too; each has its own name"
    elif place != f"model-{named}":
        yield f"{place}.name: the application of this model is named model-{named}"
    if application.route_prefix is not None:
        yield f"{place}.route_prefix: null; requests reach a model by the service alone"
    for deployment in application.deployments:
        if deployment.name != DIFFUSION.name:
            yield f"{place}.{deployment.name}: the deployment of a model is named {DIFFUSION.name}"


def _model_of(application: ServeApplicationSchema) -> _Model | None:
    given = {deployment.name: deployment for deployment in application.deployments}
    diffusion = given.get(DIFFUSION.name, DeploymentSchema(name=DIFFUSION.name))
    args = read(ModelArgs, application.args)
    user_config = read(ModelUserConfig, _option(diffusion, "user_config", None) or {})
    if args is None or user_config is None:
        return None
    return _Model(application.name, args, user_config, diffusion)


def _model(model: _Model) -> Iterator[str]:
    """A model's defaults beside its limits."""
    limits = model.limits
    at_limits = f"{model.place}.{DIFFUSION.name}.user_config.limits"
    width, height = model.args.default_size
    for name, pixels in (("width", width), ("height", height)):
        if not limits.min_side <= pixels <= limits.max_side:
            yield (
                f"{model.place}.args.defaults.{name}: {pixels} is not from min_side "
                f"{limits.min_side} to max_side {limits.max_side}"
            )
    if width * height > limits.max_pixels:
        yield (
            f"{at_limits}.max_pixels: {limits.max_pixels} is below the "
            f"{width}x{height} of a request that names no size"
        )
    for size in model.args.never_asked_for(limits):
        yield f"{model.place}.args.warmup: {size.width}x{size.height} is not within {at_limits}"
    if model.config.motion_loras and model.args.motion_adapter is None:
        yield (
            f"{model.place}.{DIFFUSION.name}.user_config.motion_loras: the model makes no videos: "
            "it has no motion_adapter"
        )


def _queues(model: _Model) -> Iterator[str]:
    """What a model never uses of its limits."""
    limits = model.limits
    if "max_batch" in limits.model_fields_set and limits.max_batch > 2 * limits.max_running:
        yield (
            f"{model.place}.{DIFFUSION.name}.user_config.limits.max_batch: "
            f"{limits.max_batch} is above two rows for each of "
            f"max_running {limits.max_running}: no batch is so large"
        )
    for name, most in (
        ("max_ongoing_requests", DIFFUSION.max_ongoing_requests),
        ("max_queued_requests", DIFFUSION.max_queued_requests),
    ):
        value = _option(model.diffusion, name, most)
        if 0 < value < limits.max_pending:
            yield (
                f"{model.place}.{DIFFUSION.name}.{name}: {value} is below max_pending "
                f"{limits.max_pending}: Serve would hold back what the engine takes"
            )


def _beside(model: _Model, service: ServiceArgs) -> Iterator[str]:
    """What a model and the service want of each other."""
    if service.max_images > model.limits.max_pending:
        yield (
            f"{model.place}.{DIFFUSION.name}.user_config.limits.max_pending: "
            f"{model.limits.max_pending} is below the service's max_images {service.max_images}: "
            "such a request would never be taken"
        )
    args = model.args
    for name, adapter in args.named_ip_adapters.items():
        if adapter.image_encoder not in service.image_encoders:
            known = ", ".join(service.image_encoders) or "none"
            yield (
                f"{model.place}.args.{ip_adapter_key(args, name)}.image_encoder: "
                f"the service has no image encoder {adapter.image_encoder!r}; it has: {known}"
            )


def _proxy(config: ServeDeploySchema, service: ServiceArgs) -> Iterator[str]:
    """Serve's proxy has a port, and lasts longer than a request."""
    if not 0 <= config.http_options.port <= HIGHEST_PORT:
        yield f"http_options.port: {config.http_options.port} is not from 0 to {HIGHEST_PORT}"
    proxy_s = config.http_options.request_timeout_s
    if proxy_s is not None and proxy_s <= service.max_timeout_s:
        yield (
            f"http_options.request_timeout_s: {proxy_s:g} is not above max_timeout_s "
            f"{service.max_timeout_s:g}: Serve would end requests before the service does"
        )


def _gpus(model: _Model) -> Iterator[str]:
    """A replica computes on what Ray has given it."""
    place = f"{model.place}.{DIFFUSION.name}.ray_actor_options"
    options = _option(model.diffusion, "ray_actor_options", None)
    gpus = (options.num_gpus or 0) if isinstance(options, RayActorOptionsSchema) else 0
    device = model.args.device
    if device.startswith("cuda") and not gpus:
        yield f"{place}: device is {device}, and no num_gpus is asked for: Ray gives it no GPU"
    if device == "cpu" and gpus:
        yield f"{place}.num_gpus: {gpus:g}, and device is cpu: the GPU is not used"


def _times(config: ServeDeploySchema, service: ServiceArgs) -> Iterator[str]:
    """Whatever carries a request lasts until it is answered; what hangs is found soon."""
    needed_s = service.max_timeout_s + GRACE_S
    short = f"is below max_timeout_s {service.max_timeout_s:g} and {GRACE_S:g} for the answer"
    least_s, most_s = HEALTH_CHECK_TIMEOUT_S
    proxy_s = config.http_options.request_timeout_s
    if proxy_s is not None and proxy_s < needed_s:
        yield f"http_options.request_timeout_s: {proxy_s:g} {short}"
    for application in config.applications:
        given = {deployment.name: deployment for deployment in application.deployments}
        names = {SERVICE: deployments_of(service), MODEL: (DIFFUSION.name,)}
        for name in names.get(application.import_path, ()):
            place = f"{application.name}.{name}"
            deployment = given.get(name, DeploymentSchema(name=name))
            key = "graceful_shutdown_timeout_s"
            drain_s = _option(deployment, key, LASTING["graceful_shutdown_timeout_s"])
            if drain_s < needed_s and name not in PASSED_BY:
                yield f"{place}.{key}: {drain_s:g} {short}"
            key = "health_check_timeout_s"
            silent_s = _option(deployment, key, LASTING["health_check_timeout_s"])
            if not least_s <= silent_s <= most_s:
                yield (
                    f"{place}.{key}: {silent_s:g} is not from {least_s:g} to {most_s:g}; "
                    "a replica that is silent three times as long is replaced"
                )
            key = "health_check_period_s"
            period_s = _option(deployment, key, DEFAULT_HEALTH_CHECK_PERIOD_S)
            if period_s >= KEPT_S and name in COUNTED:
                yield (
                    f"{place}.{key}: {period_s:g}: its figures are told as often, and Ray forgets "
                    f"a gauge after {KEPT_S:g} s, so that they come and go"
                )


def not_on_machine(place: str, service: ServiceArgs) -> Iterator[str]:
    """What the nodes of the ingress must have and the machine that asks has not."""
    keys, signing = service.keys, service.provenance
    files = {
        "keys.file": None if keys is None else keys.file,
        "provenance.certificate": None if signing is None else signing.certificate,
        "provenance.key_file": None if signing is None else signing.key_file,
    }
    for key, file in files.items():
        if file is not None and not (PROJECT_ROOT / file).is_file():
            yield f"{place}.args.{key}: {file!r} is not on this machine; nodes must have it"
    webhooks = service.jobs.webhooks
    secret = None if webhooks is None else webhooks.secret_env
    named = {
        "api_keys_env": service.api_keys_env,
        "keys.env": None if keys is None else keys.env,
        "provenance.key_env": None if signing is None else signing.key_env,
        "jobs.webhooks.secret_env": secret,
    }
    for key, name in named.items():
        if name is not None and not os.environ.get(name):
            yield f"{place}.args.{key}: {name} is not set here; nodes must have it"


def _files(application: ServeApplicationSchema, service: ServiceArgs) -> Iterator[str]:
    """Files by URL are found by every ingress, and jobs outlive a node."""
    for deployment in application.deployments:
        several = _option(deployment, "num_replicas", 1) != 1
        scales = _option(deployment, "autoscaling_config", None) is not None
        if deployment.name != "Ingress" or not (several or scales):
            continue
        if isinstance(service.storage, TemporaryStorage):
            yield (
                f"{application.name}.args.storage: temporary files are on the node that made them; "
                "where the Ingress has several nodes say a shared folder, a bucket, or null"
            )
        if "storage" not in service.jobs.model_fields_set:
            yield (
                f"{application.name}.args.jobs.storage: jobs are kept on the node of JobStore, and "
                "are lost with it; say a folder that all nodes share, a bucket, or kind: temporary"
            )


def _option(deployment: DeploymentSchema, name: str, default: Value) -> Value:
    """An option that the file gives, else the graph's own."""
    given = name in deployment.model_fields_set
    return cast(Value, getattr(deployment, name)) if given else default
