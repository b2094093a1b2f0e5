"""Brings the weights of a Serve config to this machine, and checks them.

    python -m configs.fetch configs/production/guide.yaml [--model sdxl] [--model sd15]
    python -m configs.fetch configs/production/guide.yaml --to s3://bucket/prefix

Hub files go to the hub's usual cache (`HF_HOME`), files from S3 to `TCD_CACHE`: where the
replicas look for them. With `--to` they are then put into a bucket (`configs/mirror.py`), and what
a config calls them there is said. Run it again after it broke off; what is there stays.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from configs.app import ModelArgs, ModelUserConfig, ServiceArgs
from configs.needs import Need, of_model, of_service, of_user_config
from configs.shape import misshapen
from configs.sources import PEFT_CONFIG, PROJECT_ROOT, Source, SourceError, fetch, parse, select


class ConfigError(Exception):
    """The config is not one of ours, or has no model of that name."""


@dataclass(frozen=True)
class Brought:
    """A source that is here and checked.

    Attributes:
        said: what to say of it.
        home: the folder of a mirror that it belongs in, such as "owner/name/COMMIT"; `None`: in
            none.
        own: the file or folder below `home` that it is itself; "": all of it.
        files: its files, by their paths below `home`.
    """

    said: str
    home: str | None = None
    own: str = ""
    files: tuple[tuple[str, Path], ...] = ()


def needs(config: dict[str, Any], models: Sequence[str] = ()) -> list[Need]:
    """What the named models of a Serve config need, or all of it; each source once."""
    return list(dict.fromkeys(need for _, need in named(config, models)))


def named(config: dict[str, Any], models: Sequence[str] = ()) -> list[tuple[str, Need]]:
    """The same, as often as it is named, each with its place there. Raises `ConfigError`."""
    service: tuple[str, ServiceArgs] = ("tcd", ServiceArgs())
    found: dict[str, tuple[str, ModelArgs, ModelUserConfig]] = {}
    for line in misshapen(config):
        raise ConfigError(line)
    for application in config["applications"]:
        path, args = application.get("import_path"), application.get("args", {})
        place = application.get("name", "")
        if path == "graphs.service:build":
            service = (place, ServiceArgs.model_validate(args))
        elif path == "graphs.model:build":
            model = ModelArgs.model_validate(args)
            user_config = ModelUserConfig.model_validate(_user_config(place, application))
            found[model.name] = (place, model, user_config)
    if not found:
        raise ConfigError("it holds no model application")
    unknown = sorted(set(models) - set(found))
    if unknown:
        raise ConfigError(f"it has no model {unknown[0]!r}; models: {', '.join(found)}")
    wanted: list[tuple[str, Need]] = []
    for name in models or found:
        place, model, user_config = found[name]
        wanted += [(f"{place}.args.{key}", need) for key, need in of_model(model)]
        own = f"{place}.Diffusion.user_config"
        wanted += [(f"{own}.{key}", need) for key, need in of_user_config(user_config)]
    used = None if not models else _used([found[name][1] for name in models])
    place, args = service
    wanted += [
        (f"{place}.args.{key}", need)
        for key, need in of_service(args)
        if used is None or key in used
    ]
    return wanted


def _user_config(place: str, model: dict[str, Any]) -> object:
    """What stands there of a model's one deployment; null is nothing, as for Ray."""
    deployments = model.get("deployments", [])
    for deployment in deployments:
        if (name := deployment.get("name")) != "Diffusion":
            raise ConfigError(f"{place}.{name}: the deployment of a model is named Diffusion")
    if len(deployments) > 1:
        raise ConfigError(f"{place}.Diffusion stands twice")
    given = deployments[0].get("user_config") if deployments else None
    return {} if given is None else given


def _used(models: Sequence[ModelArgs]) -> set[str]:
    """The keys of what requests for these models need of the service."""
    used = {"safety.checkpoint"}
    for args in models:
        if "depth" in args.controls:
            used.add("depth.checkpoint")
        encoders = (adapter.image_encoder for adapter in args.named_ip_adapters.values())
        used |= {f"image_encoders.{name}.checkpoint" for name in encoders}
    return used


def bring(need: Need) -> Brought:
    """Fetches and checks one source. Raises `SourceError`."""
    source = parse(need.source)
    if source.kind == "hub":
        return _bring_from_hub(need, source)
    fetch(need.source, variant=need.variant, layout=need.layout)
    if source.kind == "local":
        return Brought("on this machine")
    from configs import s3

    objects = s3.check(source, need.variant, need.layout).objects
    size = sum(item.size for item in objects)
    return Brought(f"{_amount(len(objects), size)}, as S3 holds them")


def _local(need: Need, source: Source) -> Brought:
    """A file or folder of this machine, with what of it is read."""
    path = Path(os.path.normpath(source.location))
    if path.is_relative_to(PROJECT_ROOT):
        home = f"local/{path.relative_to(PROJECT_ROOT).as_posix()}"
    else:
        home = f"absolute{path.as_posix()}"
    if path.is_file():
        if (path.parent / PEFT_CONFIG).is_file():
            raise SourceError(
                f"{path} is read with the {PEFT_CONFIG} beside it; a single file of a bucket has "
                "nothing beside it: name the folder in the config, with this adapter alone in it"
            )
        return Brought("on this machine", str(Path(home).parent), path.name, ((path.name, path),))
    below = (
        Path(folder, name).relative_to(path).as_posix()
        for folder, _, names in os.walk(path, followlinks=True)
        for name in names
    )
    chosen = sorted(select(below, source, need.variant, need.layout))
    return Brought("on this machine", home, "", tuple((name, path / name) for name in chosen))


def _bring_from_hub(need: Need, source: Source) -> Brought:
    from configs import hub

    listing = hub.list_files(source, need.variant, need.layout)
    hub.bring_large(listing, ProgressLine())
    fetch(need.source, variant=need.variant, layout=need.layout)
    hub.check_small(listing)
    size = sum(file.size for file in listing.files)
    snapshot = listing.folder / "snapshots" / listing.commit
    return Brought(
        f"{_amount(len(listing.files), size)}, hashes as the hub says; commit {listing.commit}",
        f"{source.location}/{listing.commit}",
        source.file or source.folder or "",
        tuple((file.path, snapshot / file.path) for file in listing.files),
    )


class ProgressLine:
    """Says how far a file is: on a terminal all the time, elsewhere every ten seconds."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, path: str, have: int, size: int) -> None:
        """`have` of `size` bytes of the file are there."""
        live = sys.stderr.isatty()
        now, done = time.monotonic(), have >= size
        if not done and now - self._said < (0.2 if live else 10.0):
            return
        self._said = now
        text = f"  {path}  {have / max(size, 1):4.0%} of {size / 1e6:.1f} MB"
        print(f"\r{text}" if live else text, end="\n" if done or not live else "", file=sys.stderr)


def _amount(files: int, size: int) -> str:
    return f"{files} file{'' if files == 1 else 's'}, {size / 1e6:.1f} MB"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m configs.fetch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", type=Path, help="a Serve config")
    parser.add_argument(
        "--model", action="append", default=[], help="a model's name; without any: all of them"
    )
    parser.add_argument("--to", help="put them into a bucket, too: s3://bucket/prefix")
    arguments = parser.parse_args()
    fetch_all(arguments.config, arguments.model, arguments.to)


def fetch_all(path: Path, models: Sequence[str], to: str | None = None) -> None:
    """Brings what a Serve config names for these models (none: for all), and says so line by line;
    puts it into a mirror, if one is named. Exits with a line if that fails."""
    try:
        config = yaml.safe_load(path.read_text())
        if not isinstance(config, dict):
            sys.exit(f"{path}: this is no Serve config")
        places = named(config, models)
        for line in _fetched(places) if to is None else _mirrored(places, to):
            print(line, flush=True)
    except ConfigError as error:
        sys.exit(f"{path}: {error}")
    except (SourceError, OSError, ValueError, yaml.YAMLError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; run it again to go on from here")


def _fetched(places: Sequence[tuple[str, Need]]) -> Iterator[str]:
    for need in dict.fromkeys(need for _, need in places):
        yield need.source
        yield f"  {bring(need).said}"


def _mirrored(places: Sequence[tuple[str, Need]], to: str) -> Iterator[str]:
    from configs.mirror import mirror_at

    mirror = mirror_at(to)
    uris: dict[Need, str] = {}
    for need in dict.fromkeys(need for _, need in places):
        yield need.source
        source = parse(need.source)
        brought = _local(need, source) if source.kind == "local" else bring(need)
        yield f"  {brought.said}"
        if brought.home is None:
            continue
        files = [(f"{brought.home}/{name}", path) for name, path in brought.files]
        sent = mirror.put(files, ProgressLine())
        uris[need] = mirror.uri("/".join(filter(None, (brought.home, brought.own))))
        yield f"  in {uris[need]}: {sent} sent, {len(files) - sent} were there"
    yield "To serve from there, say in the config:"
    yield from (f"  {place}: {uris[need]}" for place, need in places if need in uris)


if __name__ == "__main__":
    main()
