"""Weights from S3: a file, or all that is read of what is stored below a prefix."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.sources import (
    Layout,
    Source,
    SourceChanged,
    SourceError,
    SourceUnavailable,
    refused,
    select,
)

# A server that accepts and says nothing is given up after half a minute, all attempts together.
CONNECT_S = 5
READ_S = 10
ATTEMPTS = 3
_STAMP = ".etag"  # the end of the name of what holds a file's entity tag, beside it
# Of the answers that blame the request, those that pass.
LATER = (
    "ExpiredToken",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "SlowDown",
    "TooManyRequests",
)


@dataclass(frozen=True)
class StoredObject:
    """One file of a source.

    Attributes:
        path: where it belongs, below the folder for this source.
        tag: S3's entity tag, as S3 writes it.
    """

    key: str
    path: Path
    size: int
    tag: str


@dataclass(frozen=True)
class Listing:
    """What a URI names now.

    Attributes:
        target: the local file or folder for it.
        objects: what is brought of it.
        paths: where that belongs, and all else that is stored there.
    """

    uri: str
    bucket: str
    target: Path
    objects: tuple[StoredObject, ...]
    paths: frozenset[Path]


def cache_root() -> Path:
    """Folder for weights brought from S3: `$TCD_CACHE`, by default `~/.cache/tcd`."""
    return Path(os.environ.get("TCD_CACHE", "~/.cache/tcd")).expanduser()


def list_objects(source: Source, variant: str | None, layout: Layout) -> Listing:
    """Looks up what `sources.fetch` brings of a source in S3. Raises `SourceError` if nothing of it
    is stored there."""
    uri = source.location
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    folder = _folder(uri)
    with errors(uri):
        pages = [*client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)]
    found = {item["Key"]: item for page in pages for item in contents(uri, page)}
    # A console marks a folder with an empty object whose key ends in "/".
    if not key.endswith("/") and key in found:
        target = folder / Path(key).name
        below = keys = {target.name: key}
    else:
        target = folder
        prefix = key.rstrip("/") + "/"
        below = {name.removeprefix(prefix): name for name in found if name.startswith(prefix)}
        if not any(below):
            raise SourceError(f"{uri}: nothing is stored there")
        chosen = select(below, source, variant, layout)
        keys = {path: name for path, name in below.items() if path in chosen}
    objects = []
    for name, item_key in keys.items():
        path, item = folder / name, found[item_key]
        if not path.resolve().is_relative_to(folder.resolve()):
            raise SourceError(f"{uri}: the key {item_key!r} leads out of its folder")
        objects.append(StoredObject(item_key, path, item["Size"], item.get("ETag", "")))
    return Listing(uri, bucket, target, tuple(objects), frozenset(folder / name for name in below))


def bring(source: Source, variant: str | None = None, layout: Layout = "any") -> Path:
    """Downloads what is not here yet, or has changed, and deletes what is not there any more.
    Raises `SourceError`; a file is here whole or not at all, so that a broken download goes on
    with the file at which it broke off. What is replaced meanwhile is listed again, once."""
    try:
        return _bring(source, variant, layout)
    except SourceChanged:
        return _bring(source, variant, layout)


def _bring(source: Source, variant: str | None, layout: Layout) -> Path:
    from configs.s3_download import download

    uri = source.location
    folder = _folder(uri)
    with keeping(uri, folder):
        here = {path: _state(path) for path in _stamped(folder)}
    listing = list_objects(source, variant, layout)
    with errors(uri), keeping(uri, folder):
        for path in here.keys() - listing.paths:
            # What came since S3 was asked, another process may have found there.
            if _state(path) == here[path]:
                path.unlink(missing_ok=True)
                _stamp(path).unlink(missing_ok=True)
        asked = client()
        for item in listing.objects:
            stamp = _stamp(item.path)
            if item.path.exists() and stamp.exists() and stamp.read_text() == item.tag != "":
                continue
            item.path.parent.mkdir(parents=True, exist_ok=True)
            download(asked, listing.bucket, item, f"{uri}: {item.key}")
            stamp.write_text(item.tag)
    return listing.target


def contents(uri: str, page: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The objects that a page of a list names. Raises `SourceUnavailable` for one that was cut,
    which boto reads as an empty one."""
    if not page.keys() & {"Name", "IsTruncated", "KeyCount", "Contents"}:
        raise SourceUnavailable(f"{uri} could not be looked up: the answer did not come whole")
    objects: Sequence[Mapping[str, Any]] = page.get("Contents", ())
    return objects


def brought(source: Source) -> Path:
    """The local file or folder of what was downloaded before. Raises `SourceError` if nothing
    was."""
    folder = _folder(source.location)
    file = folder / Path(source.location).name
    if _stamp(file).exists():
        return file
    if not any(_stamped(folder)):
        raise SourceError(f"{source.location} is not here")
    return folder


def check(source: Source, variant: str | None = None, layout: Layout = "any") -> Listing:
    """Compares what was brought with what S3 holds: sizes, and contents where the entity tag is
    their MD5, as it is for files that were not uploaded in parts. Raises `SourceError`."""
    listing = list_objects(source, variant, layout)
    uri = listing.uri
    with errors(uri), keeping(uri, _folder(uri)):
        asked = client()
        for item in listing.objects:
            md5 = item.tag.strip('"')
            head = asked.head_object(Bucket=listing.bucket, Key=item.key)
            by_content = len(md5) == 32 and "kms" not in head.get("ServerSideEncryption", "")
            right = item.path.is_file() and item.path.stat().st_size == item.size
            if not right or (by_content and _md5(item.path) != md5):
                item.path.unlink(missing_ok=True)
                _stamp(item.path).unlink(missing_ok=True)
                raise SourceError(
                    f"{uri}: {item.path} is not what S3 holds; it was deleted, run this again"
                )
    return listing


def _folder(uri: str) -> Path:
    return cache_root() / "s3" / hashlib.sha256(uri.encode()).hexdigest()[:16]


def _stamp(path: Path) -> Path:
    return path.with_name(path.name + _STAMP)


def _stamped(folder: Path) -> Iterator[Path]:
    """The files that were brought to a folder."""
    for stamp in folder.rglob(f"*{_STAMP}"):
        yield stamp.with_name(stamp.name.removesuffix(_STAMP))


def _state(path: Path) -> tuple[int, int] | None:
    """What tells a file from another that takes its place; `None`: there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def storage_client(endpoint_url: str | None, connections: int) -> Any:
    """Of a bucket that the service writes to. `connections`: at a time."""
    import boto3
    from botocore.config import Config

    config = Config(
        signature_version="s3v4",
        connect_timeout=5,
        read_timeout=20,
        retries={"mode": "standard", "total_max_attempts": 3},
        max_pool_connections=connections,
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)


def client(
    connect_s: float = CONNECT_S,
    read_s: float = READ_S,
    attempts: int = ATTEMPTS,
    connections: int = 10,
) -> Any:  # boto3 makes its clients' methods as it runs
    """Of a bucket of weights. `connections`: at a time."""
    import boto3
    from botocore.config import Config

    patience = Config(
        connect_timeout=connect_s,
        read_timeout=read_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=connections,
    )
    return boto3.session.Session().client("s3", config=patience)


@contextmanager
def keeping(uri: str, folder: Path) -> Iterator[None]:
    """What the disk refuses, as a `SourceUnavailable` that names the URI and the folder."""
    try:
        yield
    except OSError as error:
        raise SourceUnavailable(
            f"{uri} could not be kept in {folder} (TCD_CACHE says where): {error}"
        ) from error


@contextmanager
def errors(uri: str, done: str = "fetched") -> Iterator[None]:
    """What boto raises, as a `SourceError` that names the URI and what could not be done."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        InvalidRegionError,
        ParamValidationError,
        PartialCredentialsError,
        ProfileNotFound,
    )
    from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError, S3ValidationError

    try:
        yield
    except ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = error.response.get("Error", {}).get("Code")
        if code == "NoSuchKey":
            raise SourceChanged(f"{uri} could not be {done}: {error}") from error
        kind = SourceError if refused(status) and code not in LATER else SourceUnavailable
        raise kind(f"{uri} could not be {done}: {error}") from error
    except (
        InvalidRegionError,
        ParamValidationError,
        PartialCredentialsError,
        ProfileNotFound,
        ValueError,  # an endpoint that is no URL
    ) as error:
        raise SourceError(f"{uri} could not be {done}: {error}") from error
    except S3DownloadFailedError as error:
        raise SourceChanged(f"{uri} could not be {done}: {error}") from error
    except (BotoCoreError, RetriesExceededError, S3ValidationError) as error:
        raise SourceUnavailable(f"{uri} could not be {done}: {error}") from error
