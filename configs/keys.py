"""Named keys: who may ask, and for how much.

    python -m configs.keys NAME

makes one: it shows the key, once, and the entry that goes into the file of keys. Only the key's
SHA-256 is kept. A plain hash is enough: a key is 256 random bits, so there is nothing to guess that
a slow or salted hash would have to protect, as it does with passwords.
"""

import argparse
import hashlib
import json
import re
import secrets
from collections.abc import Sequence

import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from configs.frozen import Frozen
from configs.names import ModelName

PREFIX = "tcd-"  # by which scanners for leaked secrets know one
NAME, NAME_CHARS = r"^[A-Za-z0-9][A-Za-z0-9._@-]*$", 64


class KeysError(ValueError):
    """The list of keys is wrong. Says where, and shows nothing of what stands there."""


class KeyEntry(Frozen):
    """One key, and what may be asked with it; `None` is without a limit.

    Attributes:
        name: what logs, figures and `GET /v1/usage` call it.
        sha256: of the key, in hexadecimal digits.
        weight: its share of a device for which several keys wait, beside theirs.
        running: images in the service at a time, in the making or waiting for a device. A
            request beyond it waits its turn at the ingress. A video or control map counts as one.
        waiting: images that may so wait; a request beyond it gets 429.
        work_per_minute: UNet pixel-steps: images x steps x latent pixels x frames, twice with
            guidance. The request that exceeds it is still taken, and what it took too much must
            flow back before the next.
        max_priority: the highest `priority` of a request.
        models: names of the models that may be asked, and seen.
        job_mb: MiB of pictures and results that its jobs may hold; further jobs are refused until
            some are deleted or expire.
        keep_s: from the end of one of its jobs until that is forgotten; by default as the service
            keeps them.
        admin: may see the usage of every key, and the pages that `protect` names.
    """

    name: str = Field(pattern=NAME, max_length=NAME_CHARS)
    sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$")
    weight: float = Field(1.0, ge=0.001, le=1000)
    running: int | None = Field(None, ge=1)
    waiting: int | None = Field(None, ge=0)
    work_per_minute: int | None = Field(None, ge=1)
    max_priority: int | None = Field(None, ge=0, le=10)
    models: tuple[ModelName, ...] | None = None
    job_mb: int | None = Field(None, ge=1)
    keep_s: float | None = Field(None, gt=0)
    admin: bool = False

    def may_ask(self, model: str) -> bool:
        """Whether the key allows this model."""
        return self.models is None or model in self.models

    @field_validator("sha256")
    @classmethod
    def _in_small_letters(cls, sha256: str) -> str:
        return sha256.lower()

    @model_validator(mode="after")
    def _limits_fit_together(self) -> "KeyEntry":
        if self.waiting is not None and self.running is None:
            raise ValueError("waiting has no effect without running")
        return self


_ENTRIES: TypeAdapter[tuple[KeyEntry, ...]] = TypeAdapter(tuple[KeyEntry, ...])


def digest(key: bytes) -> str:
    """A key as it is kept: its SHA-256 in hexadecimal digits."""
    return hashlib.sha256(key).hexdigest()


def read_keys(text: str) -> tuple[KeyEntry, ...]:
    """The keys of a list in YAML or JSON. Raises `KeysError` naming the entry and the field."""
    try:
        listed = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        raise KeysError(f"is neither YAML nor JSON{where}") from None
    if not isinstance(listed, list) or not listed:
        raise KeysError("must be a list of keys, each with name and sha256")
    try:
        entries = _ENTRIES.validate_python(listed)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        place, message = fault["loc"], fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = f"there is no such field; fields: {', '.join(KeyEntry.model_fields)}"
        inner = ".".join(map(str, place[1:]))
        which = f"key {int(place[0]) + 1}{_named(listed[int(place[0])])}"
        raise KeysError(": ".join(filter(None, (which, inner, message)))) from None
    check_distinct(entries)
    return entries


def check_distinct(entries: Sequence[KeyEntry]) -> None:
    """Raises `KeysError` if two keys share a name, or are the same."""
    names: set[str] = set()
    known: dict[str, str] = {}
    for entry in entries:
        if entry.name in names:
            raise KeysError(f"key {entry.name!r}: name: is given to two keys")
        if entry.sha256 in known:
            raise KeysError(f"key {entry.name!r}: sha256: is that of {known[entry.sha256]!r}, too")
        names.add(entry.name)
        known[entry.sha256] = entry.name


def _named(entry: object) -> str:
    """The name of an entry that is at fault, if it has one that may be shown."""
    name = entry.get("name") if isinstance(entry, dict) else None
    known = isinstance(name, str) and re.fullmatch(NAME, name) and len(name) <= NAME_CHARS
    return f" ({name!r})" if known else ""


def fresh_key(name: str) -> tuple[str, KeyEntry]:
    """A new key, and its entry without limits."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, KeyEntry(name=name, sha256=digest(key.encode()))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m configs.keys", description="makes a key")
    parser.add_argument("name", metavar="NAME", help="what logs and figures call it")
    asked = parser.parse_args()
    try:
        key, entry = fresh_key(asked.name)
    except ValidationError as error:
        parser.error(f"NAME: {error.errors()[0]['msg']}")
    shown = json.dumps(entry.model_dump(include={"name", "sha256"}))
    print(f"key, shown this once:  {key}")
    print(f"its line in the file:  - {shown}")


if __name__ == "__main__":
    main()
