"""The bytes of pictures that requests name: data URLs, https, S3.

Fetching by URL is off but for the hosts and buckets that the configuration names: a service that
fetches whatever it is told reaches what its callers cannot.
"""

import asyncio
import base64
import time
from functools import cached_property
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import httpx

from configs.app import ServiceArgs
from deployments.contracts.errors import MAX_QUOTED, InvalidRequest, NotReady, QueueFull
from deployments.ingress.request.budget import DATA_URL_HEADER
from deployments.ingress.request.workers import Workers
from preprocessors.image_file import ImageError, check_format

MAX_PERCENT_CHARS = 2**20  # decoding them is slow; base64 is what clients send
CHUNK = 2**18  # a multiple of 4: base64's groups
HEAD = 1024  # bytes that tell the format of a file


class Fetcher:
    """Brings the bytes of named pictures, at most `max_image_bytes` each.

    S3 has threads of its own: a store that does not answer holds up those who ask for it alone.
    The threads come back by themselves when the time is up.

    Args:
        workers: for decoding data URLs.
    """

    def __init__(self, args: ServiceArgs, workers: Workers) -> None:
        self._args = args
        self._workers = workers
        self._s3 = Workers("S3 pictures", threads=args.max_fetches, waiting=0)
        self._tls = httpx.create_ssl_context()  # 20 ms: not for each picture

    async def fetch(self, text: str, param: str) -> bytes:
        """A named picture's file. Raises `InvalidRequest` naming `param`, or `NotReady` if S3 does
        not answer, or already does not answer too many others."""
        scheme = text[:16].partition(":")[0]
        if scheme == "data":
            return await self._workers.run(_from_data_url, text, param)
        if scheme not in ("https", "s3"):
            raise InvalidRequest(
                f"{param} must be a data URL, an https:// URL or an s3:// URI, or as image in "
                f"controls and ip_adapter the id of a control map; it begins with {text[:16]!r}",
                param,
            )
        try:
            async with asyncio.timeout(self._args.fetch_timeout_s):
                fetched = self._from_https if scheme == "https" else self._from_s3
                return await fetched(text, param)
        except TimeoutError as error:
            raise InvalidRequest(
                f"{param}: {_shown(text)} did not come within {self._args.fetch_timeout_s:g} s",
                param,
            ) from error

    async def _from_https(self, url: str, param: str) -> bytes:
        allowed = self._args.allowed_url_hosts
        try:
            host = urlsplit(url).hostname
        except ValueError as error:
            raise InvalidRequest(f"{param}: the URL is malformed ({error})", param) from error
        if host not in allowed:
            raise InvalidRequest(
                f"{param}: pictures are not fetched from {(host or '')[:MAX_QUOTED]!r}; allowed "
                f"hosts: {', '.join(allowed) or 'none'} (allowed_url_hosts)",
                param,
            )
        data = bytearray()
        try:
            async with (
                httpx.AsyncClient(timeout=self._args.fetch_timeout_s, verify=self._tls) as client,
                client.stream("GET", url) as answer,  # redirects are not followed
            ):
                if answer.status_code != 200:
                    raise InvalidRequest(
                        f"{param}: {host} answered {answer.status_code} for the picture", param
                    )
                async for chunk in answer.aiter_bytes():
                    data += chunk
                    if len(data) > self._args.max_image_bytes:
                        raise self._too_long(param)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise InvalidRequest(
                f"{param}: the picture could not be fetched from {host} "
                f"({type(error).__name__}: {error})",
                param,
            ) from error
        return bytes(data)

    async def _from_s3(self, uri: str, param: str) -> bytes:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        allowed = self._args.allowed_s3_buckets
        if bucket not in allowed or not key:
            raise InvalidRequest(
                f"{param}: pictures are not fetched from bucket {bucket[:MAX_QUOTED]!r}; allowed "
                f"buckets: {', '.join(allowed) or 'none'} (allowed_s3_buckets)",
                param,
            )
        try:
            return await self._s3.run(self._read_s3, bucket, key, param)
        except QueueFull as error:
            raise NotReady(
                f"{param}: {self._args.max_fetches} pictures are being fetched from S3 already; "
                "try again"
            ) from error

    def _read_s3(self, bucket: str, key: str, param: str) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        until = time.monotonic() + self._args.fetch_timeout_s
        data = bytearray()
        try:
            body = self._client.get_object(Bucket=bucket, Key=key)["Body"]
            with body:
                while chunk := body.read(CHUNK):
                    data += chunk
                    if len(data) > self._args.max_image_bytes:
                        raise self._too_long(param)
                    if time.monotonic() > until:
                        raise TimeoutError
        except (BotoCoreError, ClientError) as error:
            place = f"s3://{bucket}/{key[:MAX_QUOTED]}"
            raise InvalidRequest(f"{param}: {place} could not be read ({error})", param) from error
        return bytes(data)

    @cached_property
    def _client(self) -> Any:  # boto3 makes its clients' methods as it runs
        # Made in an S3 thread: it reads files, and takes a third of a second.
        import boto3
        from botocore.config import Config

        half = self._args.fetch_timeout_s / 2
        config = Config(
            connect_timeout=half,
            read_timeout=half,
            retries={"mode": "standard", "total_max_attempts": 2},
            max_pool_connections=self._args.max_fetches,
        )
        return boto3.session.Session().client("s3", config=config)

    def _too_long(self, param: str) -> InvalidRequest:
        most = self._args.max_image_bytes
        return InvalidRequest(f"{param}: the picture has more than {most} bytes", param)


def _shown(url: str) -> str:
    """Of a URL what is no secret: no password, and no query, which may be a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"[:MAX_QUOTED]


def _from_data_url(url: str, param: str) -> bytes:
    comma = url.find(",", 0, DATA_URL_HEADER)
    if comma < 0:
        raise InvalidRequest(
            f"{param}: a data URL needs a comma before its data, and at most {DATA_URL_HEADER} "
            "characters before that",
            param,
        )
    if not url.endswith(";base64", 0, comma):
        if len(url) > MAX_PERCENT_CHARS:
            raise InvalidRequest(
                f"{param}: a data URL of {len(url)} characters must be base64; without, "
                f"{MAX_PERCENT_CHARS} at most are read",
                param,
            )
        return unquote_to_bytes(url[comma + 1 :])
    data = bytearray()
    try:
        # In pieces: one call for 20 MB would keep every other thread from running.
        for start in range(comma + 1, len(url), CHUNK):
            data += base64.b64decode(url[start : start + CHUNK], validate=True)
            if len(data) <= CHUNK:
                check_format(bytes(data[:HEAD]))
    except ImageError as error:
        raise InvalidRequest(f"{param}: {error}", param) from error
    except ValueError as error:  # binascii.Error is one; so is text that is not ASCII
        raise InvalidRequest(f"{param}: the data URL is not base64 ({error})", param) from error
    return bytes(data)
