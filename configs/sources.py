"""Where weights come from: a hub id, an `s3://` URI, or a path; each brought to a local path.

`fetch` is the one door through which checkpoints, TCD-LoRAs, styles and preprocessor
weights enter. Only configuration, tokenizer and safetensors files are brought: no pickles.
"""

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROJECT_ROOT = Path(__file__).resolve().parent.parent
WANTED_SUFFIXES = (".json", ".txt", ".safetensors", ".model")
_HUB_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+?))?(?:@(?P<revision>[\w.-]+))?"
)


class SourceError(Exception):
    """A source that is malformed, missing or out of reach. `str(error)` names it."""


@dataclass(frozen=True)
class Source:
    """A parsed source.

    Attributes:
        kind: "local", "s3" or "hub".
        location: absolute path, `s3://` URI, or `owner/name` of a hub repository.
        file: a single file inside a hub repository; `None` for the whole repository.
        revision: branch, tag or commit of a hub repository.
    """

    kind: Literal["local", "s3", "hub"]
    location: str
    file: str | None = None
    revision: str | None = None


def parse(text: str) -> Source:
    """Reads a source as a config writes it.

    An `s3://` URI; an absolute path; a path relative to the project's root that exists; or
    `owner/name[/file][@revision]` on the hub. Raises `SourceError` for anything else.
    """
    if text.startswith("s3://"):
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+/.+", text):
            raise SourceError(f"{text!r} is not of the form s3://bucket/key")
        return Source("s3", text)
    local = PROJECT_ROOT / text
    if local.exists():
        return Source("local", str(local))
    hub = _HUB_ID.fullmatch(text)
    if hub is None or text.startswith((".", "/")):
        raise SourceError(
            f"{text!r} does not exist below {PROJECT_ROOT}, and is neither an s3:// URI "
            "nor a hub id of the form owner/name"
        )
    return Source("hub", hub["repo"], hub["file"], hub["revision"])


def fetch(text: str, *, variant: str | None = None) -> Path:
    """Brings a source to this machine and returns its local file or folder.

    Args:
        text: the source, as `parse` reads it.
        variant: with a hub repository, bring weights of this variant ("fp16") only.

    Raises `SourceError` when it cannot be had; nothing half-written is left behind.
    """
    source = parse(text)
    if source.kind == "local":
        return Path(source.location)
    if source.kind == "s3":
        return _fetch_s3(source.location)
    return _fetch_hub(source, variant)


def cache_root() -> Path:
    """Folder for weights brought from S3: `$TCD_CACHE`, by default `~/.cache/tcd`."""
    return Path(os.environ.get("TCD_CACHE", "~/.cache/tcd")).expanduser()


def _fetch_hub(source: Source, variant: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if source.file is not None:
            return Path(hf_hub_download(source.location, source.file, revision=source.revision))
        weights = f"*.{variant}.safetensors" if variant else "*.safetensors"
        return Path(
            snapshot_download(
                source.location,
                revision=source.revision,
                allow_patterns=["*.json", "*.txt", "*.model", weights],
            )
        )
    except Exception as error:  # the hub client raises some twenty unrelated classes
        where = source.location if source.file is None else f"{source.location}/{source.file}"
        raise SourceError(
            f"hub {where} could not be fetched ({type(error).__name__}: {error}); "
            "for a local path, check that it exists"
        ) from error


def _fetch_s3(uri: str) -> Path:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    folder = cache_root() / "s3" / hashlib.sha256(uri.encode()).hexdigest()[:16]
    try:
        client = boto3.client("s3")
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        found = [item for page in pages for item in page.get("Contents", ())]
        prefix = key.rstrip("/") + "/"
        is_file = any(item["Key"] == key for item in found)
        wanted = [
            item
            for item in found
            if item["Key"] == key
            or (item["Key"].startswith(prefix) and item["Key"].endswith(WANTED_SUFFIXES))
        ]
        if not wanted:
            raise SourceError(f"{uri}: nothing is stored there")
        for item in wanted:
            relative = Path(key).name if is_file else item["Key"].removeprefix(prefix)
            target = folder / relative
            if not target.resolve().is_relative_to(folder.resolve()):
                raise SourceError(f"{uri}: the key {item['Key']!r} leads out of its folder")
            stamp = target.with_name(target.name + ".etag")
            if target.exists() and stamp.exists() and stamp.read_text() == item["ETag"]:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as partial:
                try:
                    client.download_fileobj(bucket, item["Key"], partial)
                    os.replace(partial.name, target)
                except BaseException:
                    os.unlink(partial.name)
                    raise
            stamp.write_text(item["ETag"])
    except (BotoCoreError, ClientError) as error:
        raise SourceError(f"{uri} could not be fetched: {error}") from error
    return folder / Path(key).name if is_file else folder
