"""What Ray's schemas and our own refuse of a Serve config: whatever needs no file to be seen."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ray import serve
from ray.runtime_env import RuntimeEnv
from ray.serve._private.utils import validate_route_prefix
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    LoggingConfig,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
    gRPCOptionsSchema,
)

from configs.app import ModelArgs, ModelUserConfig, ServiceArgs
from configs.names import NamesConfig
from graphs.check.accepted import DIRECTORY, MODEL, SERVICE

# Where Ray's schemas hold others of their kind, by key.
LISTS: dict[str, type[BaseModel]] = {
    "applications": ServeApplicationSchema,
    "deployments": DeploymentSchema,
}
MAPPINGS: dict[str, type[BaseModel]] = {
    "autoscaling_config": AutoscalingConfig,
    "grpc_options": gRPCOptionsSchema,
    "http_options": HTTPOptionsSchema,
    "logging_config": LoggingConfig,
    "policy": AutoscalingPolicy,
    "ray_actor_options": RayActorOptionsSchema,
    "request_router_config": RequestRouterConfig,
}


def refused(config: Mapping[str, Any]) -> Iterator[str]:
    """What Ray would ignore of a config that is not misshapen, and what our own schemas refuse: a
    line each, with its place."""
    yield from _unknown_keys(config, ServeDeploySchema, "")
    for application in config["applications"]:
        yield from _application(application)


def as_ray_reads(config: Mapping[str, Any]) -> tuple[ServeDeploySchema | None, list[str]]:
    """A config as Ray takes it, or `None`; and what it refuses, a line each, with its place."""
    try:
        taken = ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        faults = (f"{_place(fault['loc'], config)}: {fault['msg']}" for fault in error.errors())
        return None, list(dict.fromkeys(faults))
    except Exception as error:  # Ray's validators meet values of any type
        return None, list(_broken(config)) or [f"Ray refuses it: {one_line(error)}"]
    lines: list[str] = []
    for application in taken.applications:
        lines += _environment(application.runtime_env, application.name)
        lines += _route(application)
        for deployment in application.deployments:
            place = f"{application.name}.{deployment.name}"
            lines += _options(deployment, place)
            if isinstance(deployment.ray_actor_options, RayActorOptionsSchema):
                lines += _actor(deployment.ray_actor_options, f"{place}.ray_actor_options")
    return taken, lines


def _broken(config: Mapping[str, Any]) -> Iterator[str]:
    """The deployments at which Ray's validators break."""
    for application in config["applications"]:
        for deployment in application.get("deployments", ()):
            try:
                DeploymentSchema.model_validate(deployment)
            except ValidationError:
                continue
            except Exception as error:
                place = f"{application.get('name', '?')}.{deployment.get('name', '?')}"
                yield f"{place}: {one_line(error)}"


def one_line(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _unknown_keys(value: Mapping[str, Any], schema: type[BaseModel], place: str) -> Iterator[str]:
    """Keys that Ray would ignore, however deep they lie."""
    for key, inner in value.items():
        if key not in schema.model_fields:
            yield f"{place}{key}: Ray knows no such key here{_hint(key, schema)}"
        elif key in LISTS:
            for item in inner:
                yield from _unknown_keys(item, LISTS[key], f"{place}{item.get('name', '?')}.")
        elif key in MAPPINGS and isinstance(inner, dict):
            yield from _unknown_keys(inner, MAPPINGS[key], f"{place}{key}.")


def _application(application: Mapping[str, Any]) -> Iterator[str]:
    """What our own schemas refuse."""
    name, kind = application.get("name", "?"), application.get("import_path")
    args = application.get("args") or {}
    if kind == SERVICE:
        yield from _refused(ServiceArgs, args, f"{name}.args")
        for deployment in application.get("deployments", ()):
            place, given = f"{name}.{deployment.get('name', '?')}.user_config", "user_config"
            if deployment.get("name") == DIRECTORY:
                if given in deployment and deployment[given] is None:
                    yield f"{place}: Ray passes null over; leave it out, or say {{}}"
                yield from _refused(NamesConfig, deployment.get(given) or {}, place)
            elif deployment.get(given) is not None:
                yield f"{place}: of the deployments of the service {DIRECTORY} alone takes one"
    elif kind == MODEL:
        yield from _refused(ModelArgs, args, f"{name}.args")
        for deployment in application.get("deployments", ()):
            place = f"{name}.{deployment.get('name', '?')}.user_config"
            yield from _refused(ModelUserConfig, deployment.get("user_config") or {}, place)
    elif str(kind).startswith("graphs."):
        yield f"{name}.import_path: the graphs here are {SERVICE} and {MODEL}"


def _refused(schema: type[BaseModel], value: object, place: str) -> Iterator[str]:
    try:
        schema.model_validate(value)
    except ValidationError as error:
        for fault in error.errors():
            message = fault["msg"]
            if fault["type"] == "extra_forbidden":
                message = "there is no such key" + _hint(
                    fault["loc"][-1], *_at(fault["loc"], schema)
                )
            yield f"{'.'.join((place, *map(str, fault['loc'])))}: {message}"


def _options(deployment: DeploymentSchema, place: str) -> Iterator[str]:
    """What Ray's schema of a file lets pass and a deployment refuses."""
    options = deployment.model_dump(exclude_unset=True, exclude={"user_config"})
    try:
        _nothing().options(**options)
    except ValidationError as error:
        for fault in error.errors():
            yield f"{'.'.join((place, *map(str, fault['loc'])))}: {fault['msg']}"
    except Exception as error:  # as above
        yield f"{place}: {one_line(error)}"


def _environment(given: Mapping[str, Any] | None, place: str) -> Iterator[str]:
    """What of a `runtime_env` Ray's schemas pass and Ray refuses."""
    try:
        RuntimeEnv(**(given or {}))
    except Exception as error:  # as above
        yield f"{place}.runtime_env: {one_line(error)}"


def _actor(options: RayActorOptionsSchema, place: str) -> Iterator[str]:
    """The same of what a replica asks for."""
    yield from _environment(options.runtime_env, place)
    gpus = options.num_gpus or 0
    if gpus > 1 and gpus != int(gpus):
        yield f"{place}.num_gpus: it is {gpus:g}; above 1 it must be whole"


def _route(application: ServeApplicationSchema) -> Iterator[str]:
    """The same of where an application answers."""
    try:
        validate_route_prefix(application.route_prefix)
    except ValueError as error:
        yield f"{application.name}.route_prefix: {one_line(error)}"


@cache
def _nothing() -> serve.Deployment:
    """A deployment to see by which options Ray takes; made once, for that takes Ray a while."""

    class Nothing:
        pass

    return serve.deployment()(Nothing)


def _place(location: Sequence[int | str], config: object) -> str:
    """Where a fault lies, with applications and deployments by their names."""
    parts: list[str] = []
    value = config
    for part in location:
        if isinstance(value, list) and isinstance(part, int):
            value = value[part]
            parts[-1] = str(value.get("name", part)) if isinstance(value, dict) else str(part)
        elif isinstance(value, dict):
            value = value.get(part)
            parts.append(str(part))
    return ".".join(parts) or "it"


def _at(location: Sequence[int | str], schema: type[BaseModel]) -> tuple[type[BaseModel], ...]:
    """The schemas of what holds the last key of a fault's place: of a union, all."""
    here: tuple[type[BaseModel], ...] = (schema,)
    for part in location[:-1]:
        fields = [at.model_fields[str(part)] for at in here if str(part) in at.model_fields]
        # What is no field is a key of a mapping, a place in a list, or which of a union it is.
        here = tuple(m for f in fields for m in _schemas(f.annotation)) if fields else here
    return here


def _schemas(annotation: object) -> Iterator[type[BaseModel]]:
    """Those in a type, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _schemas(inner)


def _hint(key: object, *schemas: type[BaseModel]) -> str:
    """The key that was probably meant, as the end of a message."""
    near = get_close_matches(str(key), [name for at in schemas for name in at.model_fields], 1)
    return f"; {near[0]}?" if near else ""
