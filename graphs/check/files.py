"""What is wrong with the files that an application names, on the machine that asks.

Names, headers and configurations tell. What lies in a bucket or on the hub is not looked at.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from configs.app import FolderStorage, KeysArgs, ModelArgs, ServiceArgs
from configs.families import FAMILIES
from configs.jobs import FolderJobs
from configs.keys import KeysError
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
from deployments.ingress.keys.keyring import Keyring
from graphs.check.accepted import Accepted
from graphs.check.collections import not_a_folder

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
# By key of the service: transformers' `model_type` in the config.json of a folder.
MODEL_TYPES: dict[str, tuple[str, ...]] = {
    "depth": ("dpt",),
    "image_encoders": ("clip_vision_model", "clip"),
    "safety": ("clip",),
}


def wrong_files(application: Accepted) -> Iterator[str]:
    """A line for each, with its place."""
    for place, key, need in application.needs():
        said = _wrong_source(key, need.source)
        if said is not None:
            yield f"{place}: {said}"
    yield from not_a_folder(application)
    if application.model is not None:
        yield from (f"{application.name}.args.{said}" for said in _wrong_model(application.model))
    if application.service is not None:
        of_service = _wrong_service(application.service)
        yield from (f"{application.name}.args.{said}" for said in of_service)


def here(source: str) -> Path | None:
    """Where a source lies, if that is on this machine."""
    try:
        found = parse(source)
    except SourceError:
        return None
    return Path(found.location) if found.kind == "local" else None


def _wrong_service(args: ServiceArgs) -> Iterator[str]:
    """What is wrong with what a service reads and keeps on its nodes, with its keys."""
    if args.provenance is not None:
        said = _wrong_signing(args.provenance)
        if said is not None:
            yield f"provenance: {said}"
    if args.keys is not None and args.keys.file is not None:
        file = PROJECT_ROOT / args.keys.file
        if file.is_file():
            try:
                Keyring(KeysArgs(file=str(file)), needs_admin=bool(args.protect))
            except KeysError as error:
                yield f"keys.file: {error}"
    for key, kept in (("storage", args.storage), ("jobs.storage", args.jobs.storage)):
        if isinstance(kept, FolderStorage | FolderJobs):
            folder = PROJECT_ROOT / kept.path
            first = next(place for place in (folder, *folder.parents) if place.exists())
            if not first.is_dir():
                yield f"{key}.path: {first} is no folder"


def _wrong_model(args: ModelArgs) -> Iterator[str]:
    """What is wrong with a model's checkpoint and its VAE, with their keys."""
    checkpoint = here(args.checkpoint)
    if checkpoint is not None:
        try:
            check_model(args, checkpoint, here(args.config or FAMILIES[args.family].base))
        except WrongFile as error:
            yield f"checkpoint: {error}"
    for key, source in (("vae.source", args.vae.source), ("preview_vae", args.preview_vae)):
        vae = None if source is None else here(source)
        if vae is None:
            continue
        if vae.is_dir():
            described = (vae / "config.json", vae / "vae" / "config.json")
            if not any(file.is_file() for file in described):
                yield f"{key}: {vae.name} has no config.json"
        elif key == "vae.source" and not vae.name.endswith(PICKLES):
            try:
                check_vae(identify(read_header(vae)))
            except WrongFile as error:
                yield f"{key}: {error}"


def _wrong_source(key: str, source: str) -> str | None:
    """What a source is instead of one, or what it holds, as far as names and headers tell."""
    try:
        parse(source)
    except SourceError as error:
        return str(error)
    if source.endswith(PICKLES):
        return f"{source!r} is a pickle; only safetensors are read"
    what, file = key.partition(".")[0], here(source)
    if what in MODEL_TYPES and file is not None:
        return _wrong_type(file, MODEL_TYPES[what])
    if what not in KINDS or file is None or not file.is_file():
        return None
    try:
        found = identify(read_header(file))
        if found.kind is not None or ADAPTER not in KINDS[what]:  # which have names of many kinds
            check_kind(found, *KINDS[what])
    except WrongFile as error:
        return str(error)
    return None


def _wrong_type(folder: Path, types: tuple[str, ...]) -> str | None:
    """Why a folder holds no model of transformers of one of these types."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{folder.name} has no config.json that can be read"
    kind = found.get("model_type") if isinstance(found, dict) else None
    if kind in types:
        return None
    return f"{folder.name} is of model_type {kind!r}; {' or '.join(types)} is needed"


def _wrong_signing(args: ProvenanceArgs) -> str | None:
    """Why nothing can be signed, where certificate and key are on this machine."""
    files = (PROJECT_ROOT / path for path in (args.certificate, args.key_file) if path is not None)
    if all(map(Path.is_file, files)) and (args.key_env is None or os.environ.get(args.key_env)):
        try:
            Provenance(args)
        except ProvenanceError as error:
            return str(error)
    return None
