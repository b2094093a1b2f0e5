"""`tcd models`: what the service has."""

import json
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table
from rich.text import Text

from tcd import options
from tcd.screen import printed
from tcd.service import Service


def models(
    name: Annotated[str | None, typer.Argument(help="Of one: all that is known of it.")] = None,
    as_json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    key: options.Key = None,
) -> None:
    """The models that run, and what each can do."""
    with Service(url, key) as service:
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
        ", ".join(card["loras"]),
        ", ".join(card["controls"]),
    ]
