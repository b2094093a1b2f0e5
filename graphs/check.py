"""`make check-config`: everything that is wrong with a Serve config, before it is deployed.

    python -m graphs.check serve_config.yaml ...

Ray ignores what it does not know in a Serve config, and some mistakes it finds only once the
change has begun.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
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
from configs.families import FAMILIES
from configs.provenance import ProvenanceArgs
from configs.sources import PICKLES, PROJECT_ROOT, SourceError, parse
from deployments.diffusion.engine.models.checkpoints.fitness import (
    check_kind,
    check_model,
    check_vae,
)
from deployments.diffusion.engine.models.checkpoints.header import WrongFile, read_header
from deployments.diffusion.engine.models.checkpoints.identity import (
    ADAPTER,
    CONTROLNET,
    IP_ADAPTER,
    MOTION_ADAPTER,
    T2I_ADAPTER,
    TEXTUAL_INVERSION,
    identify,
)
from deployments.ingress.answer.provenance import Provenance, ProvenanceError
from graphs.agreement import MODEL, SERVICE, advice, disagreements

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
}

# What files stand under keys of a model; an adapter may bring words of prompts along.
KINDS: dict[str, tuple[str, ...]] = {
    "tcd_lora": (ADAPTER,),
    "loras": (ADAPTER,),
    "motion_loras": (ADAPTER,),
    "motion_adapter": (MOTION_ADAPTER,),
    "controls": (CONTROLNET, T2I_ADAPTER),
    "ip_adapter": (IP_ADAPTER,),
    "ip_adapters": (IP_ADAPTER,),
    "embeddings": (TEXTUAL_INVERSION, ADAPTER),
}


def main() -> None:
    """The command line. Exits with 1 if anything is wrong; advice, of a file with which nothing
    is, does not count."""
    parser = argparse.ArgumentParser(prog="python -m graphs.check")
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG")
    wrong = 0
    for path in parser.parse_args().configs:
        found = list(problems_of(path))
        wrong += len(found)
        lines = found or [f"advice: {line}" for line in advice_of(path)] or ["as it should be"]
        print("\n".join(f"{path}: {line}" for line in lines))
    sys.exit(1 if wrong else 0)


def problems_of(path: Path) -> Iterator[str]:
    """What is wrong with a file: a line each, with its place."""
    try:
        config = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        yield f"it cannot be read: {error.strerror}"
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        yield f"it is no YAML: {_line(error)}"
    else:
        yield from problems(config)


def advice_of(path: Path) -> Iterator[str]:
    """What would do better in a file with which nothing is wrong: a line each, with its place."""
    yield from advice(ServeDeploySchema.model_validate(yaml.load(path.read_text(), _Loader)))


def problems(config: object) -> Iterator[str]:
    """What is wrong with a Serve config, as YAML reads it: a line each, with its place."""
    if not isinstance(config, dict):
        yield "a Serve config is a mapping with `applications`"
        return
    misshapen = list(_misshapen(config))
    yield from misshapen
    if misshapen:
        return
    yield from _unknown_keys(config, ServeDeploySchema, "")
    for application in config["applications"]:
        yield from _application(application)
    try:
        accepted = ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        yield from dict.fromkeys(
            f"{_place(fault['loc'], config)}: {fault['msg']}" for fault in error.errors()
        )
    except Exception as error:  # Ray's validators meet values of any type
        yield f"Ray refuses it: {_line(error)}"
    else:
        for application in accepted.applications:
            for deployment in application.deployments:
                yield from _options(deployment, f"{application.name}.{deployment.name}")
        yield from disagreements(accepted)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML would take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} stands twice", problem_mark=node.value[place][0].start_mark
                )
        return node


def _misshapen(config: Mapping[str, Any]) -> Iterator[str]:
    """Lists that are none, and what is no mapping in them."""
    applications = config.get("applications")
    if not isinstance(applications, list):
        yield "applications: it is a list of applications, each a mapping"
        return
    for number, application in enumerate(applications):
        if not isinstance(application, dict):
            yield f"applications.{number}: an application is a mapping"
            continue
        name = application.get("name", number)
        deployments = application.get("deployments", [])
        if not isinstance(deployments, list):
            yield f"{name}.deployments: it is a list of deployments, each a mapping"
            continue
        for index, deployment in enumerate(deployments):
            if not isinstance(deployment, dict):
                yield f"{name}.deployments.{index}: a deployment is a mapping"


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
    """What our own schemas refuse, and sources that are none."""
    name, kind = application.get("name", "?"), application.get("import_path")
    args = application.get("args") or {}
    if kind == SERVICE:
        yield from _refused(ServiceArgs, args, f"{name}.args")
    elif kind == MODEL:
        yield from _refused(ModelArgs, args, f"{name}.args")
        for deployment in application.get("deployments", ()):
            place = f"{name}.{deployment.get('name', '?')}.user_config"
            yield from _refused(ModelUserConfig, deployment.get("user_config") or {}, place)
    elif str(kind).startswith("graphs."):
        yield f"{name}.import_path: the graphs here are {SERVICE} and {MODEL}"


def _refused(schema: type[BaseModel], value: object, place: str) -> Iterator[str]:
    try:
        accepted = schema.model_validate(value)
    except ValidationError as error:
        for fault in error.errors():
            message = fault["msg"]
            if fault["type"] == "extra_forbidden":
                message = "there is no such key" + _hint(
                    fault["loc"][-1], *_at(fault["loc"], schema)
                )
            yield f"{'.'.join((place, *map(str, fault['loc'])))}: {message}"
    else:
        for key, source in _sources(accepted):
            try:
                parse(source)
            except SourceError as error:
                yield f"{place}.{key}: {error}"
            if source.endswith(PICKLES):
                yield f"{place}.{key}: {source!r} is a pickle; only safetensors are read"
            elif (said := _of_another_kind(key, source)) is not None:
                yield f"{place}.{key}: {said}"
        if isinstance(accepted, ModelArgs):
            yield from _files(accepted, place)
        if isinstance(accepted, ServiceArgs) and accepted.provenance is not None:
            yield from _signing(accepted.provenance, place)


def _files(args: ModelArgs, place: str) -> Iterator[str]:
    """What is wrong with a model's checkpoint and its VAE, where they are on this machine."""
    checkpoint = _here(args.checkpoint)
    if checkpoint is not None:
        try:
            check_model(args, checkpoint, _here(args.config or FAMILIES[args.family].base))
        except WrongFile as error:
            yield f"{place}.checkpoint: {error}"
    vae = None if args.vae.source is None else _here(args.vae.source)
    if vae is not None and vae.is_file() and not vae.name.endswith(PICKLES):
        try:
            check_vae(identify(read_header(vae)))
        except WrongFile as error:
            yield f"{place}.vae.source: {error}"


def _signing(args: ProvenanceArgs, place: str) -> Iterator[str]:
    """Why nothing can be signed, where certificate and key are on this machine."""
    files = (PROJECT_ROOT / path for path in (args.certificate, args.key_file) if path is not None)
    if all(map(Path.is_file, files)) and (args.key_env is None or os.environ.get(args.key_env)):
        try:
            Provenance(args)
        except ProvenanceError as error:
            yield f"{place}.provenance: {error}"


def _of_another_kind(key: str, source: str) -> str | None:
    """Why a file on this machine cannot stand under a key, as far as its header tells."""
    kinds, file = KINDS.get(key.partition(".")[0]), _here(source)
    if kinds is None or file is None or not file.is_file():
        return None
    try:
        found = identify(read_header(file))
        if found.kind is not None or ADAPTER not in kinds:  # which have names of many kinds
            check_kind(found, *kinds)
    except WrongFile as error:
        return str(error)
    return None


def _here(source: str) -> Path | None:
    """Where a source lies, if that is on this machine."""
    try:
        found = parse(source)
    except SourceError:
        return None
    return Path(found.location) if found.kind == "local" else None


def _sources(accepted: BaseModel) -> Iterator[tuple[str, str]]:
    """Every source that `args` or a `user_config` names, by its key."""
    named: dict[str, str | None] = {}
    if isinstance(accepted, ModelArgs):
        named = {
            "checkpoint": accepted.checkpoint,
            "config": accepted.config,
            "tcd_lora": accepted.tcd_lora,
            "motion_adapter": accepted.motion_adapter,
            "preview_vae": accepted.preview_vae,
            "vae.source": accepted.vae.source,
        }
        if accepted.ip_adapter is not None:
            named["ip_adapter.adapter"] = accepted.ip_adapter.adapter
        named |= {f"controls.{kind}": args.source for kind, args in accepted.controls.items()}
        named |= {
            f"ip_adapters.{name}.adapter": a.adapter for name, a in accepted.ip_adapters.items()
        }
        named |= {f"embeddings.{word}": source for word, source in accepted.embeddings.items()}
    elif isinstance(accepted, ModelUserConfig):
        named = {f"loras.{name}": source for name, source in accepted.loras.items()}
        named |= {f"motion_loras.{name}": at for name, at in accepted.motion_loras.items()}
    elif isinstance(accepted, ServiceArgs):
        if accepted.depth is not None:
            named["depth.checkpoint"] = accepted.depth.checkpoint
        if accepted.safety is not None:
            named["safety.checkpoint"] = accepted.safety.checkpoint
        for name, encoder in accepted.image_encoders.items():
            named[f"image_encoders.{name}.checkpoint"] = encoder.checkpoint
    for key, source in named.items():
        if source is not None:
            yield key, source


def _options(deployment: DeploymentSchema, place: str) -> Iterator[str]:
    """What Ray's schema of a file lets pass and a deployment refuses."""
    options = deployment.model_dump(exclude_unset=True, exclude={"name", "user_config"})
    try:
        serve.deployment(name=deployment.name)(_Nothing).options(**options)
    except ValidationError as error:
        for fault in error.errors():
            yield f"{'.'.join((place, *map(str, fault['loc'])))}: {fault['msg']}"
    except Exception as error:  # as above
        yield f"{place}: {_line(error)}"


class _Nothing:
    """What a deployment is made of to see which options Ray takes."""


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


def _line(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    main()
