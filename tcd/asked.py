"""Requests as the words of a command line say them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tcd.pictures import source_of
from tcd.service import WRONG, Failed


def without_nothing(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was not said: the service has its own values for that."""
    return {name: value for name, value in fields.items() if value not in (None, [], ())}


def body_of(
    own: Mapping[str, Any],
    *,
    prompt: str,
    model: str | None,
    negative: str | None,
    steps: int | None,
    eta: float | None,
    guidance: float | None,
    size: str | None,
    seed: int | None,
    lora: Sequence[str] | None,
    control: Sequence[str] | None,
    like: Sequence[str] | None,
    output_format: str | None,
    field: Sequence[str] | None,
) -> dict[str, Any]:
    """A request of what images and videos have in common, by the names of the options; `own`: its
    other fields. What --set says wins. Raises `Failed`."""
    said = {
        "prompt": prompt,
        "model": model,
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "eta": eta,
        "guidance_scale": guidance,
        "size": size,
        "seed": seed,
        "loras": loras(lora or ()),
        "controls": controls(control or ()),
        "ip_adapter": resembled(like or ()),
        "output_format": output_format,
    }
    return without_nothing({**said, **own, **more(field or ())})


def loras(words: Sequence[str], option: str = "--lora") -> list[dict[str, Any]]:
    """`name`, or `name=weight`."""
    found = []
    for word in words:
        name, _, weight = word.partition("=")
        found.append({"name": name, "weight": _number(weight or "1", option, word)})
    return found


def controls(words: Sequence[str]) -> list[dict[str, Any]]:
    """`type=picture`, or `type=picture@scale`."""
    found = []
    for word in words:
        kind, given, rest = word.partition("=")
        if not given:
            raise Failed(f"--control {word}: say it as TYPE=PICTURE or TYPE=PICTURE@SCALE", WRONG)
        picture, scale = _scaled(rest)
        one: dict[str, Any] = {"type": kind, "image": source_of(picture)}
        if scale is not None:
            one["conditioning_scale"] = _number(scale, "--control", word)
        found.append(one)
    return found


def resembled(words: Sequence[str]) -> dict[str, Any] | None:
    """`picture`, or `picture@scale` for all of them; several are seen together."""
    if not words:
        return None
    pictures, scale = [], None
    for word in words:
        picture, said = _scaled(word)
        pictures.append(source_of(picture))
        scale = scale if said is None else _number(said, "--like", word)
    return without_nothing({"image": pictures, "scale": scale})


def more(words: Sequence[str]) -> dict[str, Any]:
    """`field=value`: JSON, or else text."""
    found: dict[str, Any] = {}
    for word in words:
        name, given, value = word.partition("=")
        if not given:
            raise Failed(f"--set {word}: say it as FIELD=VALUE", WRONG)
        if name == "async":
            raise Failed(f"--set {word}: a job is asked for with --later", WRONG)
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def form_of(body: Mapping[str, Any]) -> dict[str, str]:
    """A body as the fields of a form: texts as they are, the rest as JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in body.items()}


def _scaled(text: str) -> tuple[str, str | None]:
    """What stands before and behind the last @, if a number does."""
    before, found, behind = text.rpartition("@")
    if found and behind.replace(".", "", 1).isdigit():
        return before, behind
    return text, None


def _number(text: str, option: str, word: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Failed(f"{option} {word}: {text!r} is no number", WRONG)
    return number
