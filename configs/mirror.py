"""Weights put into a bucket, so that nodes need no hub.

    TO/owner/name/COMMIT/...   files of a hub repository, as they are there
    TO/local/...               files of the project's folder, by their path in it
    TO/absolute/...            other files of this machine, by their path

What a commit has never changes, so that a config which names one goes on meaning the same weights.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import s3
from configs.sources import SourceError

PART = 64 * 2**20  # bytes that are sent at a time, and again if they did not arrive
Progress = Callable[[str, int, int], None]  # path, bytes that are there, bytes in all


@dataclass(frozen=True)
class Mirror:
    """A place in S3. `prefix`: what its keys begin with, "" or ending in "/"."""

    bucket: str
    prefix: str

    def uri(self, name: str) -> str:
        """What a config calls something that lies there."""
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def put(self, files: Sequence[tuple[str, Path]], progress: Progress) -> int:
        """Stores files, each under its name; what is there already is not sent again, and a large
        file goes on after the last part that arrived. Returns how many were sent.

        Raises `SourceError`, or `SourceUnavailable` where running it again may help; then what has
        arrived stays.
        """
        sent = 0
        for name, path in files:
            key = self.prefix + name
            with s3.errors(self.uri(name), "stored"):
                sent += _Upload(s3.client(), self.bucket, key, path, progress).run()
        return sent


def mirror_at(text: str) -> Mirror:
    """Reads `s3://bucket` or `s3://bucket/prefix`. Raises `SourceError` for anything else."""
    found = re.fullmatch(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]+)(?:/(?P<prefix>.*))?", text)
    if found is None:
        raise SourceError(f"{text!r} is not of the form s3://bucket/prefix")
    prefix = (found["prefix"] or "").strip("/")
    return Mirror(found["bucket"], f"{prefix}/" if prefix else "")


@dataclass(frozen=True)
class _Upload:
    """One file on its way.

    S3's entity tag of what it received is the MD5 of a file that came at once, and of one that came
    in parts the MD5 of their MD5s: it is compared with that of the file here. With keys of KMS the
    tag is something else; then the one that was stored beside the file counts.
    """

    client: Any  # boto3 makes its clients' methods as it runs
    bucket: str
    key: str
    path: Path
    progress: Progress

    def run(self) -> bool:
        """Whether it had to be sent."""
        size = self.path.stat().st_size
        hashes = self._hashes()
        tag = _tag(hashes)
        if self._is_there(size, tag):
            self.progress(self.key, size, size)
            return False
        if len(hashes) == 1:
            body = self.path.read_bytes()
            self.client.put_object(
                **self._where(), Body=body, ContentMD5=_base64(hashes[0]), Metadata={"md5": tag}
            )
            self.progress(self.key, size, size)
        else:
            self._send_parts(size, hashes, tag)
        if not self._is_there(size, tag):
            raise SourceError(f"s3://{self.bucket}/{self.key} is not what was sent; run this again")
        return True

    def _where(self) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.key}

    def _hashes(self) -> list[bytes]:
        """MD5s of the parts of the file, at least one."""
        with self.path.open("rb") as file:
            found = [_md5(part) for part in iter(lambda: file.read(PART), b"")]
        return found or [_md5(b"")]

    def _is_there(self, size: int, tag: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            head = self.client.head_object(**self._where())
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise
        hidden = "kms" in head.get("ServerSideEncryption", "")
        said = head["Metadata"].get("md5") if hidden else head["ETag"].strip('"')
        return bool(head["ContentLength"] == size and said == tag)

    def _send_parts(self, size: int, hashes: Sequence[bytes], tag: str) -> None:
        upload = self._begun() or self.client.create_multipart_upload(
            **self._where(), Metadata={"md5": tag}
        )
        to = {**self._where(), "UploadId": upload["UploadId"]}
        pages = self.client.get_paginator("list_parts").paginate(**to)
        arrived = {
            part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", ())
        }
        parts, have = [], 0
        with self.path.open("rb") as file:
            for number, wanted in enumerate(hashes, 1):
                body = file.read(PART)
                etag = arrived.get(number, "")
                if etag.strip('"') != wanted.hex():
                    etag = self.client.upload_part(
                        **to, PartNumber=number, Body=body, ContentMD5=_base64(wanted)
                    )["ETag"]
                parts.append({"PartNumber": number, "ETag": etag})
                have += len(body)
                self.progress(self.key, have, size)
        self.client.complete_multipart_upload(**to, MultipartUpload={"Parts": parts})

    def _begun(self) -> dict[str, Any] | None:
        """The last upload of this file that was not finished."""
        pages = self.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self.bucket, Prefix=self.key
        )
        begun = [each for page in pages for each in page.get("Uploads", ())]
        own = [each for each in begun if each["Key"] == self.key]
        return max(own, key=lambda each: each["Initiated"], default=None)


def _tag(hashes: Sequence[bytes]) -> str:
    if len(hashes) == 1:
        return hashes[0].hex()
    return f"{_md5(b''.join(hashes)).hex()}-{len(hashes)}"


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
