"""`tcd generate`, `edit` and `again`: images, as they come."""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tcd import options
from tcd.asked import body_of, form_of, more, without_nothing
from tcd.commands.videos import make_video
from tcd.following import accepted
from tcd.pictures import file_in, file_of, request_in, with_pictures
from tcd.saved import prepared, saved
from tcd.screen import Screen, people, screen
from tcd.service import Failed, Service, told

GENERATIONS, EDITS = "v1/images/generations", "v1/images/edits"
PARTIAL = 3  # as many as the service shows of an image
FILES = ("image", "mask")  # of the form of an edit


def generate(
    prompt: Annotated[str, typer.Argument(help="What is to be seen.")],
    model: options.Model = None,
    negative: options.Negative = None,
    steps: options.Steps = None,
    eta: options.Eta = None,
    guidance: options.Guidance = None,
    size: options.Size = None,
    seed: options.Seed = None,
    count: options.Count = 1,
    lora: options.Loras = None,
    control: options.Controls = None,
    like: options.Like = None,
    output_format: options.Format = None,
    out: options.Out = options.HERE,
    show: options.Show = False,
    later: options.Later = False,
    field: options.Set = None,
    timeout: options.Timeout = options.TIMEOUT_S,
    as_json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    key: options.Key = None,
) -> None:
    """Makes images of a prompt."""
    body = body_of(
        {"n": count},
        prompt=prompt,
        model=model,
        negative=negative,
        steps=steps,
        eta=eta,
        guidance=guidance,
        size=size,
        seed=seed,
        lora=lora,
        control=control,
        like=like,
        output_format=output_format,
        field=field,
    )
    with screen(as_json) as shown, Service(url, key, timeout) as service:
        if later:
            accepted(service, GENERATIONS, as_json, json=body | {"async": True})
        else:
            _made(service, GENERATIONS, body, None, out, shown, show, as_json)


def edit(
    image: Annotated[Path, typer.Argument(help="The picture that is to be changed.")],
    prompt: Annotated[str, typer.Argument(help="What is to be seen.")],
    mask: Annotated[
        Path | None, typer.Option(help="What is transparent in it, or else white, is made anew.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far the picture is noised, above 0, at most 1.")
    ] = None,
    model: options.Model = None,
    negative: options.Negative = None,
    steps: options.Steps = None,
    eta: options.Eta = None,
    guidance: options.Guidance = None,
    size: options.Size = None,
    seed: options.Seed = None,
    count: options.Count = 1,
    lora: options.Loras = None,
    control: options.Controls = None,
    like: options.Like = None,
    output_format: options.Format = None,
    out: options.Out = options.HERE,
    show: options.Show = False,
    later: options.Later = False,
    field: options.Set = None,
    timeout: options.Timeout = options.TIMEOUT_S,
    as_json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    key: options.Key = None,
) -> None:
    """Changes a picture, or the part of it that a mask shows."""
    body = body_of(
        {"n": count, "strength": strength},
        prompt=prompt,
        model=model,
        negative=negative,
        steps=steps,
        eta=eta,
        guidance=guidance,
        size=size,
        seed=seed,
        lora=lora,
        control=control,
        like=like,
        output_format=output_format,
        field=field,
    )
    files = {"image": file_of(image)} | ({} if mask is None else {"mask": file_of(mask)})
    with screen(as_json) as shown, Service(url, key, timeout) as service:
        if later:
            form = form_of(body | {"async": True})
            accepted(service, EDITS, as_json, data=form, files=files)
        else:
            _made(service, EDITS, body, files, out, shown, show, as_json)


def again(
    picture: Annotated[Path, typer.Argument(help="An image or webp video of this service.")],
    pictures: Annotated[
        list[Path] | None,
        typer.Option("--picture", help="Those that it was made from, in any order. Repeatable."),
    ] = None,
    seed: options.Seed = None,
    count: Annotated[int | None, typer.Option("-n", "--count", min=1)] = None,
    steps: options.Steps = None,
    field: options.Set = None,
    only_say: Annotated[
        bool, typer.Option("--say", help="Says the request, and asks for nothing.")
    ] = False,
    out: options.Out = options.HERE,
    show: options.Show = False,
    timeout: options.Timeout = options.TIMEOUT_S,
    as_json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    key: options.Key = None,
) -> None:
    """Makes a picture again as its file says that it was made, or with what is said otherwise."""
    changes = {"seed": seed, "n": count, "num_inference_steps": steps}
    request = without_nothing(request_in(picture) | without_nothing(changes) | more(field or ()))
    if only_say:
        typer.echo(json.dumps(request, indent=None if as_json else 2))
        return
    body = with_pictures(request, pictures or ())
    with screen(as_json) as shown, Service(url, key, timeout) as service:
        if "num_frames" in body:
            make_video(service, body, out, shown, as_json)
        elif "image" in body:
            files = {name: file_in(body.pop(name), name) for name in FILES if name in body}
            _made(service, EDITS, body, files, out, shown, show, as_json)
        else:
            _made(service, GENERATIONS, body, None, out, shown, show, as_json)


def _made(
    service: Service,
    route: str,
    body: Mapping[str, Any],
    files: Mapping[str, bytes] | None,
    out: Path,
    shown: Screen,
    show: bool,
    as_json: bool,
) -> None:
    """Asks for images, follows them, and keeps their files. Raises `Failed` if one failed."""
    prepared(out)
    asked = {**body, "stream": True}
    if people.is_terminal and not as_json:
        asked.setdefault("partial_images", PARTIAL)
    how: dict[str, Any] = {"json": asked}
    if files is not None:
        how = {"data": form_of(asked), "files": files}
    kind = str(body.get("output_format", "png"))
    faults: list[str] = []
    for event in _followed(service, route, how, shown, show):
        index = event["image_index"]
        if event["type"].endswith(".failed"):
            faults.append(f"image {index}: {told(event['error'])}")
            continue
        data = base64.b64decode(event["b64_json"])
        path = saved(out, str(event["seed"]), kind, data)
        if show and not as_json:
            shown.picture(data)
        said = {"seed": event["seed"], "size": event["size"], "index": index}
        shown.made(path, said, as_json)
    if faults:
        raise Failed("\n".join(faults))


def _followed(
    service: Service, route: str, how: Mapping[str, Any], shown: Screen, show: bool
) -> Iterator[dict[str, Any]]:
    """The ends of images; how they become is shown."""
    for event in service.events("POST", route, **how):
        if not event["type"].endswith(".partial_image"):
            shown.advance(event["image_index"], 1.0, f"image {event['image_index']}: done")
            yield event
            continue
        index, part = event["image_index"], event["partial_image_index"] + 1
        shown.advance(index, part / (PARTIAL + 1), f"image {index}: step {event['step']}")
        if show:
            shown.picture(base64.b64decode(event["b64_json"]))
