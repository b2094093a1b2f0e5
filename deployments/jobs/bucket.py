"""`Objects` in an S3 bucket, by conditional writes (`If-None-Match: *`, `If-Match`)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from configs.s3 import contents
from configs.sources import SourceUnavailable
from deployments.contracts.errors import StorageUnavailable
from deployments.jobs.objects import Listed, Stored, Written
from deployments.jobs.shared import Shared

ABSENT = ("NoSuchKey", "404")
OTHER = '"0123456789abcdef0123456789abcdef"'  # a tag that no file has
PROBES = "probes/"
CONFLICT = ("ConditionalRequestConflict", "409")  # somebody writes at this moment
UNMET = ("PreconditionFailed", "412", *ABSENT)
LOST = (*UNMET, *CONFLICT)
CONFLICTS = 5  # in a row, each of a write that was tried again
PAUSE_S = 0.1


class BucketObjects:
    """Files of a bucket, whose keys begin with `prefix`. Before its first call each process looks
    whether the bucket keeps conditions; if not, every call is refused.

    Args:
        client: boto3's. It may ask again by itself: see `_written`.
    """

    def __init__(self, client: Any, bucket: str, prefix: str = "") -> None:
        self._client, self._bucket, self._prefix = client, bucket, prefix
        self._proof = Shared(self._prove)
        self._proven = False

    def read(self, name: str) -> Stored | None:
        """As `Objects`."""
        with self._answering():
            try:
                found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
                return Stored(found["Body"].read(), found["ETag"])
            except ClientError as error:
                if _code(error) in ABSENT:
                    return None
                raise

    def create(self, name: str, content: bytes) -> Written | None:
        """As `Objects`."""
        return self._written(name, content, IfNoneMatch="*")

    def replace(self, name: str, content: bytes, tag: str) -> Written | None:
        """As `Objects`."""
        return self._written(name, content, IfMatch=tag)

    def delete(self, name: str, tag: str | None = None) -> None:
        """As `Objects`."""
        condition = {} if tag is None else {"IfMatch": tag}
        with self._answering():
            try:
                self._client.delete_object(
                    Bucket=self._bucket, Key=self._prefix + name, **condition
                )
            except ClientError as error:
                if _code(error) not in LOST:
                    raise

    def listed(self, prefix: str) -> Iterator[Listed]:
        """As `Objects`."""
        with self._answering():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                for item in contents(f"s3://{self._bucket}/{self._prefix}{prefix}", page):
                    name = str(item["Key"]).removeprefix(self._prefix)
                    yield Listed(name, item["ETag"], item["LastModified"].timestamp())

    def _written(self, name: str, content: bytes, **condition: str) -> Written | None:
        """A write under a condition. If it does not hold, the file may be what was to be written: a
        first try whose answer was lost. Who meets another's write tries again when that is over."""
        put: Callable[..., Any] = self._client.put_object
        with self._answering():
            for left in reversed(range(CONFLICTS)):
                try:
                    made = put(
                        Bucket=self._bucket, Key=self._prefix + name, Body=content, **condition
                    )
                    return Written(made["ETag"], made["ETag"])
                except ClientError as error:
                    if _code(error) in UNMET:
                        break
                    if _code(error) not in CONFLICT or not left:
                        raise
                    time.sleep(PAUSE_S)
        found = self.read(name)
        if found is None or found.content != content:
            return None
        return Written(found.tag, found.tag)

    def _prove(self) -> None:
        """Raises `StorageUnavailable` if the bucket writes or deletes though a condition does not
        hold, as some do that take S3's calls: two who meet would lose a job there. What holds is
        to be done."""
        at = {"Bucket": self._bucket, "Key": f"{self._prefix}{PROBES}{uuid4().hex}"}
        put, delete = self._client.put_object, self._client.delete_object
        first = put(**at, Body=b"1", IfNoneMatch="*")["ETag"]
        self._prove_one("If-None-Match of a PUT", at, b"1", put, Body=b"2", IfNoneMatch="*")
        self._prove_one("If-Match of a PUT", at, b"1", put, Body=b"2", IfMatch=OTHER)
        self._prove_one("If-Match of a DELETE", at, b"1", delete, IfMatch=OTHER)
        self._prove_one("If-Match of a PUT", at, b"2", put, Body=b"2", IfMatch=first)
        delete(**at)
        self._proven = True

    def _prove_one(
        self, what: str, at: dict[str, str], after: bytes, call: Callable[..., Any], **how: object
    ) -> None:
        try:
            call(**at, **how)
            kept = self._client.get_object(**at)["Body"].read() == after
        except ClientError as error:
            if _code(error) not in LOST:
                raise
            kept = after == b"1" and _code(error) not in ABSENT
        if not kept:
            self._client.delete_object(**at)
            raise StorageUnavailable(
                f"s3://{self._bucket} does not keep {what}: jobs would be lost in it"
            )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            if not self._proven:
                self._proof.run()
            yield
        except (
            BotoCoreError,
            ClientError,
            HTTPError,  # of the network, below botocore, while a body is read
            ResponseParserError,
            SourceUnavailable,
        ) as error:
            raise StorageUnavailable(
                f"s3://{self._bucket} does not answer ({type(error).__name__}: {error})"
            ) from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
