"""`<lora:name:0.8>` in a prompt: how A1111's clients say which style adapters act."""

import re

from pydantic import ValidationError

from deployments.contracts.errors import MAX_QUOTED, InvalidRequest
from deployments.contracts.jobs import LoraWeight
from deployments.ingress.answer.failures import invalid

_TAG = re.compile(r"<(\w+):([^<>]+)>")
ADAPTERS = ("lora", "lyco", "lycoris")


def without_loras(prompt: str, act: bool = True) -> tuple[str, tuple[LoraWeight, ...]]:
    """The prompt without its tags, and what they say if they `act`: else, as in A1111, whatever
    they say is nothing. Raises `InvalidRequest` for a tag of another kind, or one that asks for
    more than one weight."""
    loras = tuple(_lora(tag) for tag in _TAG.finditer(prompt)) if act else ()
    return _TAG.sub("", prompt), loras


def _lora(tag: re.Match[str]) -> LoraWeight:
    shown = tag[0][:MAX_QUOTED]
    if tag[1].lower() not in ADAPTERS:
        raise InvalidRequest(f"{shown}: only <lora:name:weight> is known", "prompt")
    name, *said = (part.strip() for part in tag[2].split(":"))
    try:
        weights = {_weight(text) for text in said} or {1.0}
    except ValueError:
        raise InvalidRequest(f"{shown}: a weight is a number", "prompt") from None
    if len(weights) > 1:
        raise InvalidRequest(
            f"{shown}: text encoder and UNet have the same weight here; give one", "prompt"
        )
    try:
        return LoraWeight(name=name, weight=weights.pop())
    except ValidationError as error:
        raise InvalidRequest(f"{shown}: {invalid(error)}", "prompt") from error


def _weight(text: str) -> float:
    """`0.8`, `te=0.8` or `unet=0.8`."""
    return float(re.sub(r"^(te|unet)\s*=", "", text))
