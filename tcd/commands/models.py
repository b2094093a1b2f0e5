"""`tcd models`: what the service has."""

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table
from rich.text import Text

from tcd import options
from tcd.screen import printed
from tcd.service import Failed, Service

Where = Annotated[bool, typer.Option("--where", help="Which replicas run, and where.")]


def models(
    name: Annotated[str | None, typer.Argument(help="Of one: all that is known of it.")] = None,
    where: Where = False,
    as_json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    key: options.Key = None,
) -> None:
    """The models that run, and what each can do."""
    with Service(url, key) as service:
        if where:
            every = service.json("GET", "v1/replicas", "data")["data"]
            named = [one for one in every if name in (None, one["model"], *one["aliases"])]
            if name is not None and not named:
                raise Failed(f"model {name!r} does not exist")
            _show_where(named, as_json)
            return
        if name is not None:
            card = service.json("GET", f"v1/models/{quote(name, safe='')}", "id")
            typer.echo(json.dumps(card, indent=None if as_json else 2))
            return
        cards = service.json("GET", "v1/models", "data")["data"]
    table = Table(
        "model", "family", "size", "tasks", "styles", "controls", box=None, header_style="bold"
    )
    for card in cards:
        if as_json:
            typer.echo(json.dumps(card))
        table.add_row(*map(Text, _row(card)))
    if not as_json:
        printed(table)


def _row(card: dict[str, Any]) -> list[str]:
    defaults = card["defaults"]
    return [
        card["id"],
        card["family"],
        f"{defaults['width']}x{defaults['height']}",
        ", ".join(card["tasks"]),
        ", ".join([*card["loras"], *(["and others, by name"] if card.get("loras_from") else [])]),
        ", ".join(card["controls"]),
    ]


def _show_where(models: list[dict[str, Any]], as_json: bool) -> None:
    columns = ("model", "state", "stands for", "replica", "node", "device", "images", "seconds")
    table = Table(*columns, box=None, header_style="bold")
    for model in models:
        if as_json:
            typer.echo(json.dumps(model))
        aliases = ", ".join(f"{alias} {share:.0%}" for alias, share in model["aliases"].items())
        of = [model["model"], model["availability"], aliases]
        for one in model["replicas"] or [None]:
            table.add_row(*map(Text, [*of, *_place(one)]))
            of = ["", "", ""]
    if not as_json:
        printed(table)


def _place(replica: dict[str, Any] | None) -> list[str]:
    if replica is None:
        return ["-"] * 5
    waiting = [str(replica["pending_images"]), f"{replica['pending_seconds']:.1f}"]
    return [replica["id"], replica["node"], replica["device"], *waiting]
