"""`tcd check` and `tcd fetch`: files of weights, without a service."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from configs.families import FAMILIES, FamilyName
from tcd.service import REFUSED, Failed

# What each command reads weights with: the distribution of the client lacks some (docs/adr/0013).
CHECK = ("torch", "diffusers", "safetensors")
FETCH = ("yaml", "huggingface_hub", "boto3")


def needs(command: str, modules: Sequence[str], distribution: str) -> None:
    """Raises `Failed` with what to install if one of the modules is not there."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise Failed(f"{command} needs {', '.join(missing)}: install {distribution}")


def check(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files, or folders of one.")
    ],
    family: Annotated[FamilyName | None, typer.Option(help="Asks of this one alone.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON for each file.")
    ] = False,
) -> None:
    """Says of adapters, checkpoints and VAEs what they are, and which models they are for."""
    needs("tcd check", CHECK, "ray-serve-tcd in place of ray-serve-tcd-client")
    families: tuple[FamilyName, ...] = (family,) if family else tuple(FAMILIES)
    # Not before: torch takes seconds, and `--help` none.
    from tcd.check import check_files

    if not check_files(files, families, as_json=as_json):
        raise typer.Exit(REFUSED)


def fetch(
    config: Annotated[Path, typer.Argument(help="A Serve config.")],
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Of these alone. Repeatable.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="S3_URI", help="Puts them into a bucket, too: s3://bucket/prefix."),
    ] = None,
) -> None:
    """Brings the weights that a Serve config names, from where it was stopped, and checks them."""
    needs("tcd fetch", FETCH, "ray-serve-tcd-client[fetch]")
    from configs.fetch import fetch_all

    fetch_all(config, model or [], to)
