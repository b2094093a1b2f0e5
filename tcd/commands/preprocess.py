"""`tcd preprocess`: the map that a control takes from a picture."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tcd import options
from tcd.asked import form_of, more
from tcd.pictures import file_of
from tcd.saved import prepared, saved
from tcd.screen import screen
from tcd.service import Service


def preprocess(
    kind: Annotated[Literal["depth", "canny"], typer.Argument(help="Of the map.")],
    image: Annotated[Path, typer.Argument(help="The picture.")],
    out: options.Out = options.HERE,
    show: options.Show = False,
    field: options.Set = None,
    timeout: options.Timeout = options.TIMEOUT_S,
    url: options.Url = options.DEFAULT_URL,
    key: options.Key = None,
) -> None:
    """Makes the map of a picture, as a control sees it."""
    fields, files = form_of(more(field or ())), {"image": file_of(image)}
    prepared(out)
    with screen(quiet=False) as shown, Service(url, key, timeout) as service:
        data = service.posted(f"v1/preprocess/{kind}", data=fields, files=files)
        if show:
            shown.picture(data)
        shown.say(str(saved(out, f"{image.stem}-{kind}", "png", data)))
