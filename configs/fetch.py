"""Brings the weights of a Serve config to this machine, and checks them.

    python -m configs.fetch configs/production/guide.yaml [--model sdxl] [--model sd15]

Hub files go to the hub's usual cache (`HF_HOME`), files from S3 to `TCD_CACHE`: where the
replicas look for them. Run it again after it broke off; what is there stays.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from configs.app import ModelArgs, ModelUserConfig, ServiceArgs
from configs.needs import Need, of_model, of_service, of_user_config
from configs.sources import Source, SourceError, fetch, parse


class ConfigError(Exception):
    """The config is not one of ours, or has no model of that name."""


def needs(config: dict[str, Any], models: Sequence[str] = ()) -> list[Need]:
    """What the named models of a Serve config need, or all of it; each source once."""
    service = ServiceArgs()
    found: dict[str, tuple[ModelArgs, ModelUserConfig]] = {}
    for application in config.get("applications", []):
        path, args = application.get("import_path"), application.get("args", {})
        if path == "graphs.service:build":
            service = ServiceArgs.model_validate(args)
        elif path == "graphs.model:build":
            model = ModelArgs.model_validate(args)
            (deployment,) = application.get("deployments") or [{}]
            user_config = ModelUserConfig.model_validate(deployment.get("user_config", {}))
            found[model.name] = (model, user_config)
    if not found:
        raise ConfigError("it holds no model application")
    unknown = sorted(set(models) - set(found))
    if unknown:
        raise ConfigError(f"it has no model {unknown[0]!r}; models: {', '.join(found)}")
    wanted: dict[Need, None] = {}
    for name in models or found:
        args, user_config = found[name]
        wanted |= {need: None for _, need in (*of_model(args), *of_user_config(user_config))}
    used = None if not models else _used([found[name][0] for name in models])
    wanted |= {need: None for key, need in of_service(service) if used is None or key in used}
    return list(wanted)


def _used(models: Sequence[ModelArgs]) -> set[str]:
    """The keys of what requests for these models need of the service."""
    used = {"safety.checkpoint"}
    for args in models:
        if "depth" in args.controls:
            used.add("depth.checkpoint")
        encoders = (adapter.image_encoder for adapter in args.named_ip_adapters.values())
        used |= {f"image_encoders.{name}.checkpoint" for name in encoders}
    return used


def bring(need: Need) -> str:
    """Fetches and checks one source. Returns what to say of it; raises `SourceError`."""
    source = parse(need.source)
    if source.kind == "hub":
        return _bring_from_hub(need, source)
    fetch(need.source, variant=need.variant, layout=need.layout)
    if source.kind == "local":
        return "on this machine"
    from configs import s3

    objects = s3.check(source, need.variant, need.layout).objects
    return f"{_amount(len(objects), sum(item.size for item in objects))}, as S3 holds them"


def _bring_from_hub(need: Need, source: Source) -> str:
    from configs import hub

    listing = hub.list_files(source, need.variant, need.layout)
    hub.bring_large(listing, ProgressLine())
    fetch(need.source, variant=need.variant, layout=need.layout)
    hub.check_small(listing)
    size = sum(file.size for file in listing.files)
    return f"{_amount(len(listing.files), size)}, hashes as the hub says; commit {listing.commit}"


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
    arguments = parser.parse_args()
    fetch_all(arguments.config, arguments.model)


def fetch_all(path: Path, models: Sequence[str]) -> None:
    """Brings what a Serve config names for these models (none: for all), and says so line by line.
    Exits with a line if that fails."""
    try:
        config = yaml.safe_load(path.read_text())
        if not isinstance(config, dict):
            sys.exit(f"{path}: this is no Serve config")
        for need in needs(config, models):
            print(need.source, flush=True)
            print(f"  {bring(need)}", flush=True)
    except ConfigError as error:
        sys.exit(f"{path}: {error}")
    except (SourceError, OSError, ValueError, yaml.YAMLError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; run it again to go on from here")


if __name__ == "__main__":
    main()
