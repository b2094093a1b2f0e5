"""Adapters below a prefix in S3, found by name, and copies of those that were asked for."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

from configs import s3
from configs.collection import SUFFIX, WEIGHTS, Held, name_of
from configs.copies import Copies
from configs.s3 import StoredObject
from configs.sources import PEFT_CONFIG

FRESH_S = 30.0
MISSING_S = 5.0
LOOKUPS = 16  # that are made at a time, as a replica asks
PAGE = 1000  # files that S3 names at a time
MOST_FILES = 10_000  # that are looked through in a folder
# An answer to a lookup is given up after about ten seconds, all attempts together.
CONNECT_S = 2
READ_S = 3
ATTEMPTS = 2


class S3Collection:
    """What is stored below a prefix.

    Args:
        uri: `s3://bucket/prefix/`; the last slash may be left out.
        disk_bytes: of copies in `$TCD_CACHE/loras`, those of all URIs together.
    """

    fresh_s = FRESH_S
    missing_s = MISSING_S

    def __init__(self, uri: str, disk_bytes: int) -> None:
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
        self._uri = f"s3://{self._bucket}/{self._prefix}"
        self._folder = s3.cache_root() / "loras"
        self._copies = Copies(self._folder, disk_bytes)
        self._making = Lock()
        self._clients: tuple[Any, Any] | None = None

    def find(self, name: str) -> Held | None:
        """See `Collection`. One or two listings; more of a folder that holds thousands of files."""
        where = f"{self._uri}{name}"
        with s3.errors(where, "looked up"):
            file = f"{name}{SUFFIX}"
            found = self._listed(file, 1)  # of all keys that begin so, the first
            if file in found:
                return self._held(where, "", [file], found)
            inside = f"{name}/"
            found = self._listed(inside, MOST_FILES)
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
        listed = [(file, found[inside + file]) for file in files]
        objects = [
            StoredObject(item["Key"], Path(file), int(item["Size"]), item.get("ETag", ""))
            for file, item in listed
        ]
        tags = " ".join(f"{one.path} {one.size} {one.tag}" for one in objects)
        state = f"{where}/{inside and '/'}{tags}"
        bring = partial(self._bring, where, state, objects)
        return Held(where, state, sum(one.size for one in objects), bring)

    def _bring(self, where: str, state: str, objects: Sequence[StoredObject]) -> Path:
        """Copies what is not here yet; a file is here whole or not at all, and as it was listed."""
        from configs.s3_download import download

        name = hashlib.sha256(state.encode()).hexdigest()[:32]
        with s3.errors(where), s3.keeping(where, self._folder):
            place = self._copies.place(name)
            copies = [replace(one, path=place / one.path) for one in objects]
            lacking = [one for one in copies if not _is_here(one)]
            if lacking:
                self._copies.make_room(sum(one.size for one in lacking))
            _, asked = self._asked()
            for one in lacking:
                download(asked, self._bucket, one, f"{where}: {one.path.name}")
        return copies[-1].path

    def _listed(self, path: str, most: int) -> dict[str, Any]:
        """What is stored under paths that begin so, `most` of it, by its path below the prefix."""
        asked, _ = self._asked()
        size = min(most, PAGE)
        pages = asked.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket,
            Prefix=self._prefix + path,
            PaginationConfig={"PageSize": size},
        )
        few = islice(pages, most // size)
        listed = (item for page in few for item in s3.contents(self._uri + path, page))
        return {item["Key"].removeprefix(self._prefix): item for item in listed}

    def _asked(self) -> tuple[Any, Any]:
        """Clients for lookups and for downloads. Making one takes a tenth of a second."""
        with self._making:
            if self._clients is None:
                lookups = s3.client(CONNECT_S, READ_S, ATTEMPTS, LOOKUPS)
                self._clients = lookups, s3.client(connections=4 * LOOKUPS)
            return self._clients


def _is_here(copy: StoredObject) -> bool:
    return copy.path.is_file() and copy.path.stat().st_size == copy.size
