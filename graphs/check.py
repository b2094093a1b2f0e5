"""`make check-config`: everything that is wrong with a Serve config, before it is deployed.

    python -m graphs.check serve_config.yaml ...

Ray ignores what it does not know in a Serve config, and a mistake in an application's `args`
shows only once that application has been taken down to be replaced.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from configs.app import ModelArgs, ModelUserConfig, ServiceArgs
from configs.sources import SourceError, parse

MODEL, SERVICE = "graphs.model:build", "graphs.service:build"


def main() -> None:
    """The command line. Exits with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m graphs.check")
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG")
    wrong = 0
    for path in parser.parse_args().configs:
        found = list(problems(yaml.safe_load(path.read_text())))
        wrong += len(found)
        print("\n".join(f"{path}: {problem}" for problem in found) or f"{path}: as it should be")
    sys.exit(1 if wrong else 0)


def problems(config: object) -> Iterator[str]:
    """What is wrong with a Serve config, as YAML reads it: a line each, with its place."""
    from ray.serve.schema import ServeDeploySchema

    if not isinstance(config, dict):
        yield "a Serve config is a mapping with `applications`"
        return
    yield from _of_ray(config, ServeDeploySchema, "")
    for application in config.get("applications") or ():
        yield from _application(application)


def _of_ray(value: Mapping[str, Any], schema: type[BaseModel], place: str) -> Iterator[str]:
    """Keys that Ray does not know and values that it refuses, however deep they lie."""
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import (
        DeploymentSchema,
        HTTPOptionsSchema,
        LoggingConfig,
        RayActorOptionsSchema,
        ServeApplicationSchema,
    )

    for key in value:
        if key not in schema.model_fields:
            yield f"{place}{key}: Ray knows no such key here{_hint(key, schema)}"
    lists: dict[str, type[BaseModel]] = {
        "applications": ServeApplicationSchema,
        "deployments": DeploymentSchema,
    }
    mappings: dict[str, type[BaseModel]] = {
        "autoscaling_config": AutoscalingConfig,
        "http_options": HTTPOptionsSchema,
        "logging_config": LoggingConfig,
        "ray_actor_options": RayActorOptionsSchema,
    }
    for inner, inner_schema in lists.items():
        if inner in schema.model_fields:
            for item in value.get(inner) or ():
                name = item.get("name", "?")
                yield from _of_ray(item, inner_schema, f"{place}{name}.")
    for inner, inner_schema in mappings.items():
        if inner in schema.model_fields and isinstance(value.get(inner), dict):
            yield from _of_ray(value[inner], inner_schema, f"{place}{inner}.")
    if schema is DeploymentSchema or schema is ServeApplicationSchema:
        yield from _refused(schema, {k: v for k, v in value.items() if k != "deployments"}, place)


def _application(application: Mapping[str, Any]) -> Iterator[str]:
    name, kind = application.get("name", "?"), application.get("import_path")
    args = application.get("args") or {}
    if kind == SERVICE:
        yield from _refused(ServiceArgs, args, f"{name}.args.")
    if kind != MODEL:
        return
    yield from _refused(ModelArgs, args, f"{name}.args.")
    if name != f"model-{args.get('name')}":
        yield f"{name}.name: the application of this model is named model-{args.get('name')}"
    for deployment in application.get("deployments") or ():
        if deployment.get("name") != "Diffusion":
            yield f"{name}.{deployment.get('name')}: the deployment of a model is named Diffusion"
        user_config = deployment.get("user_config") or {}
        yield from _refused(ModelUserConfig, user_config, f"{name}.Diffusion.user_config.")
        for field in ("loras", "motion_loras"):
            for lora, source in (user_config.get(field) or {}).items():
                yield from _source(source, f"{name}.Diffusion.user_config.{field}.{lora}")
    for field in ("checkpoint", "tcd_lora", "motion_adapter", "preview_vae"):
        if args.get(field) is not None:
            yield from _source(args[field], f"{name}.args.{field}")
    if isinstance(args.get("vae"), dict) and args["vae"].get("source") is not None:
        yield from _source(args["vae"]["source"], f"{name}.args.vae.source")
    for control, source in (args.get("controls") or {}).items():
        yield from _source(source, f"{name}.args.controls.{control}")


def _source(source: object, place: str) -> Iterator[str]:
    try:
        parse(str(source))
    except SourceError as error:
        yield f"{place}: {error}"


def _refused(schema: type[BaseModel], value: object, place: str) -> Iterator[str]:
    try:
        schema.model_validate(value)
    except ValidationError as error:
        for fault in error.errors():
            where = ".".join(str(part) for part in fault["loc"])
            message = fault["msg"]
            if fault["type"] == "extra_forbidden":
                message = "there is no such key" + _hint(fault["loc"][-1], schema)
            yield f"{place}{where}: {message}"


def _hint(key: object, schema: type[BaseModel]) -> str:
    """The key that was probably meant, as the end of a message."""
    near = get_close_matches(str(key), schema.model_fields, 1)
    return f"; {near[0]}?" if near else ""


if __name__ == "__main__":
    main()
