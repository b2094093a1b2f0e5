"""Adapters below a prefix in S3, found by name, and copies of those that were asked for."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from configs import s3
from configs.collection import SUFFIX, WEIGHTS, Held, name_of
from configs.copies import Copies
from configs.sources import PEFT_CONFIG

FRESH_S = 30.0
MISSING_S = 5.0
LOOKUPS = 16  # that are made at a time, as a replica asks
# An answer to a lookup is given up after about ten seconds, all attempts together.
CONNECT_S = 2
READ_S = 3
ATTEMPTS = 2


class S3Collection:
    """What is stored below a prefix.

    Args:
        uri: `s3://bucket/prefix/`; the last slash may be left out.
        disk_bytes: of copies in `$TCD_CACHE/loras`; those of one URI share them.
    """

    fresh_s = FRESH_S
    missing_s = MISSING_S

    def __init__(self, uri: str, disk_bytes: int) -> None:
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        self._uri = f"s3://{self._bucket}/{self._prefix}"
        digest = hashlib.sha256(self._uri.encode()).hexdigest()[:16]
        self._copies = Copies(s3.cache_root() / "loras" / digest, disk_bytes)
        self._making = Lock()
        self._clients: tuple[Any, Any] | None = None

    def find(self, name: str) -> Held | None:
        """See `Collection`. One or two listings."""
        where = f"{self._uri}{name}"
        with s3.errors(where, "looked up"):
            file = f"{name}{SUFFIX}"
            found = self._listed(file, 1)  # of all keys that begin so, the first
            if file in found:
                return self._held(where, "", [file], found)
            inside = f"{name}/"
            found = self._listed(inside, 1000)
            for weights in WEIGHTS:
                if f"{inside}{weights}" in found:
                    described = [PEFT_CONFIG] if f"{inside}{PEFT_CONFIG}" in found else []
                    return self._held(where, inside, [*described, weights], found)
        return None

    def count(self) -> int:
        """See `Collection`. A listing of all that is stored there."""
        with s3.errors(self._uri, "listed"):
            asked, _ = self._asked()
            pages = asked.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            )
            keys = (item["Key"] for page in pages for item in s3.contents(self._uri, page))
            return len({name_of(key.removeprefix(self._prefix)) for key in keys} - {None})

    def _held(
        self, where: str, inside: str, files: Sequence[str], found: Mapping[str, Any]
    ) -> Held:
        """`files`: their names, the weights last."""
        sizes = {file: int(found[inside + file]["Size"]) for file in files}
        tags = [f"{file} {sizes[file]} {found[inside + file].get('ETag', '')}" for file in files]
        state = f"{where}/{inside and '/'}{' '.join(tags)}"
        bring = partial(self._bring, where, state, inside, sizes)
        return Held(where, state, sum(sizes.values()), bring)

    def _bring(self, where: str, state: str, inside: str, sizes: Mapping[str, int]) -> Path:
        """Copies what is not here yet; a file is here whole or not at all."""
        digest = hashlib.sha256(state.encode()).hexdigest()[:32]
        place = self._copies.place(digest)
        lacking = [file for file, size in sizes.items() if not _is_here(place / file, size)]
        if lacking:
            self._copies.make_room(sum(sizes[file] for file in lacking))
        with s3.errors(where):
            _, asked = self._asked()
            for file in lacking:
                key, what = f"{self._prefix}{inside}{file}", f"{where}: {file}"
                s3.download(asked, self._bucket, key, place / file, sizes[file], what)
        return place / list(sizes)[-1]

    def _listed(self, path: str, most: int) -> dict[str, Any]:
        """What is stored under paths that begin so, `most` of it, by its path below the prefix."""
        asked, _ = self._asked()
        page = asked.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix + path, MaxKeys=most)
        contents = s3.contents(self._uri + path, page)
        return {item["Key"].removeprefix(self._prefix): item for item in contents}

    def _asked(self) -> tuple[Any, Any]:
        """Clients for lookups and for downloads. Making one takes a tenth of a second."""
        with self._making:
            if self._clients is None:
                lookups = s3.client(CONNECT_S, READ_S, ATTEMPTS, LOOKUPS)
                self._clients = lookups, s3.client(connections=4 * LOOKUPS)
            return self._clients


def _is_here(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size
