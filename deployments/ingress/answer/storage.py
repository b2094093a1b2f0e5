"""Finished files by URL: kept in a folder or in an S3 bucket, under names that nobody can guess.

Storing has threads of its own: a storage that hangs must not take those that decode and encode.
"""

import asyncio
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from configs.app import S3Storage
from configs.s3 import storage_client
from deployments.contracts.api import OutputFormat
from deployments.contracts.errors import StorageUnavailable
from deployments.ingress.answer.media import MEDIA_TYPES

FILES_PATH = "/v1/files/"
NAME_BYTES = 32
THREADS = 16
PATIENCE_S = 60.0  # for one file, waiting for a thread included
NAME = re.compile(r"[A-Za-z0-9_-]{43}\.[a-z0-9]{2,5}")
log = logging.getLogger("ray.serve.tcd.storage")


class Storage(Protocol):
    """Where files are kept."""

    async def put(self, data: bytes, output_format: OutputFormat) -> str:
        """Keeps a file. Returns the URL under which anybody can fetch it; one that begins with
        a slash is a path of this service.

        Raises `StorageUnavailable`.
        """
        ...


class FolderStore:
    """Files in a folder, shown by a web server (at `shown_at`), or else by this service (at
    `service_url`, if that is known)."""

    def __init__(
        self, folder: Path, service_url: str | None = None, shown_at: str | None = None
    ) -> None:
        self._folder = folder
        self._shown_at = shown_at or (service_url or "").rstrip("/") + FILES_PATH
        self._threads = ThreadPoolExecutor(THREADS, "tcd-storage")

    async def put(self, data: bytes, output_format: OutputFormat) -> str:
        """As `Storage` says."""
        file_name = new_name(output_format)
        name = await _in_thread(self._threads, lambda: self._write(file_name, data))
        return f"{self._shown_at.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """The file of a name that `put` gave out; `None` for any other text, and for what is
        gone."""
        if NAME.fullmatch(name) is None:
            return None
        try:
            return (self._folder / name).read_bytes()
        except OSError:
            return None

    def _write(self, name: str, data: bytes) -> str:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Whoever is quick must not see half a file.
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.chmod(file.name, 0o644)
                    os.replace(file.name, self._folder / name)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            log.warning("%s could not be written: %s", self._folder / name, error)
            raise StorageUnavailable(not_taken(f"folder, {error.strerror}")) from error
        return name


class BucketStore:
    """Files in an S3 bucket, shown by presigned URLs."""

    def __init__(self, args: S3Storage) -> None:
        self._args = args
        self._threads = ThreadPoolExecutor(THREADS, "tcd-storage")

    async def put(self, data: bytes, output_format: OutputFormat) -> str:
        """As `Storage` says."""
        key = self._args.prefix + new_name(output_format)
        return await _in_thread(self._threads, lambda: self._upload(key, data, output_format))

    def _upload(self, key: str, data: bytes, output_format: OutputFormat) -> str:
        from botocore.exceptions import BotoCoreError, ClientError

        bucket = self._args.bucket
        try:
            self._client.put_object(
                Bucket=bucket, Key=key, Body=data, ContentType=MEDIA_TYPES[output_format]
            )
            url: str = self._client.generate_presigned_url(
                "get_object",
                Params={"Bucket": bucket, "Key": key},
                ExpiresIn=self._args.presign_s,
            )
        except (BotoCoreError, ClientError) as error:
            log.warning("s3://%s/%s could not be written: %s", bucket, key, error)
            raise StorageUnavailable(not_taken(f"S3, {type(error).__name__}")) from error
        return url

    @cached_property
    def _client(self) -> Any:  # boto3 makes its clients' methods as it runs
        # Made in a storage thread: it reads files, and takes a third of a second.
        return storage_client(self._args.endpoint_url, THREADS)


async def _in_thread(threads: ThreadPoolExecutor, work: Callable[[], str]) -> str:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.get_running_loop().run_in_executor(threads, work)
    except TimeoutError as error:
        raise StorageUnavailable(not_taken(f"no answer within {PATIENCE_S:g} s")) from error


def new_name(suffix: str) -> str:
    """Of a file: whoever knows it may see the file."""
    return f"{secrets.token_urlsafe(NAME_BYTES)}.{suffix}"


def not_taken(what: str) -> str:
    """What a client is told of a file that could not be kept."""
    return (
        f"the image was made, but the storage for files did not take it ({what}); try again, or "
        "ask for response_format b64_json"
    )
