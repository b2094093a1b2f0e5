"""Pictures as requests name them, brought in and decoded: bytes, data URLs, https, S3, arrays."""

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

import httpx
import numpy as np

from configs.app import ServiceArgs
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import ImageInput, Pixels
from preprocessors.image_file import ImageError, Picture, check_size, read_image

FETCH_TIMEOUT_S = 20.0


@dataclass(frozen=True, eq=False)
class Loaded:
    """A decoded picture, and the SHA-256 of its pixels as hex."""

    picture: Picture
    digest: str

    @property
    def pixels(self) -> Pixels:
        """(height, width, 3) uint8."""
        return self.picture.rgb


class Pictures:
    """Brings pictures in, within the service's limits.

    Fetching by URL is off but for the hosts and buckets that the configuration names: a
    service that fetches whatever it is told reaches what its callers cannot.
    """

    def __init__(self, args: ServiceArgs) -> None:
        self._args = args

    async def load(self, given: ImageInput, param: str) -> Loaded:
        """Fetches and decodes, off the event loop. Raises `InvalidRequest` naming `param`."""
        if isinstance(given, np.ndarray):
            return await asyncio.to_thread(self._from_array, given, param)
        data = given if isinstance(given, bytes) else await self._bytes(given, param)
        return await asyncio.to_thread(self._decode, data, param)

    def _decode(self, data: bytes, param: str) -> Loaded:
        args = self._args
        try:
            picture = read_image(
                data, max_pixels=args.max_image_pixels, max_bytes=args.max_image_bytes
            )
        except ImageError as error:
            raise InvalidRequest(f"{param}: {error}", param) from error
        return Loaded(picture, _digest(picture.rgb))

    def _from_array(self, array: np.ndarray, param: str) -> Loaded:
        """(height, width, 3) or (height, width, 4) uint8, from a caller in Python."""
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (3, 4):
            raise InvalidRequest(
                f"{param} is an array of {array.shape} {array.dtype}; (height, width, 3 or 4) "
                "uint8 is needed",
                param,
            )
        try:
            check_size(array.shape[1], array.shape[0], self._args.max_image_pixels)
        except ImageError as error:
            raise InvalidRequest(f"{param}: {error}", param) from error
        rgb = np.ascontiguousarray(array[:, :, :3])
        alpha = np.ascontiguousarray(array[:, :, 3]) if array.shape[2] == 4 else None
        return Loaded(Picture(rgb, alpha), _digest(rgb))

    async def _bytes(self, text: str, param: str) -> bytes:
        schemes: dict[str, Callable[[str, str], Awaitable[bytes]]] = {
            "data": self._from_data_url,
            "https": self._from_https,
            "s3": self._from_s3,
        }
        fetch = schemes.get(text.partition(":")[0])
        if fetch is None:
            raise InvalidRequest(
                f"{param} must be a data URL, an https:// URL or an s3:// URI, or in controls and "
                f"ip_adapter the id of a control map; it begins with {text[:16]!r}",
                param,
            )
        return await fetch(text, param)

    async def _from_data_url(self, url: str, param: str) -> bytes:
        header, comma, body = url.partition(",")
        if not comma:
            raise InvalidRequest(f"{param}: a data URL needs a comma before its data", param)
        if not header.endswith(";base64"):
            return unquote_to_bytes(body)
        try:
            return base64.b64decode(body, validate=True)
        except ValueError as error:  # binascii.Error is one; so is text that is not ASCII
            raise InvalidRequest(f"{param}: the data URL is not base64 ({error})", param) from error

    async def _from_https(self, url: str, param: str) -> bytes:
        allowed = self._args.allowed_url_hosts
        try:
            host = urlsplit(url).hostname
        except ValueError as error:
            raise InvalidRequest(f"{param}: the URL is malformed ({error})", param) from error
        if host not in allowed:
            raise InvalidRequest(
                f"{param}: pictures are not fetched from {host!r}; allowed hosts: "
                f"{', '.join(allowed) or 'none'} (allowed_url_hosts)",
                param,
            )
        limit = self._args.max_image_bytes
        data = bytearray()
        try:
            async with (
                httpx.AsyncClient(timeout=FETCH_TIMEOUT_S) as client,
                client.stream("GET", url) as answer,  # redirects are not followed
            ):
                if answer.status_code != 200:
                    raise InvalidRequest(
                        f"{param}: {host} answered {answer.status_code} for the picture", param
                    )
                async for chunk in answer.aiter_bytes():
                    data += chunk
                    if len(data) > limit:
                        raise InvalidRequest(
                            f"{param}: the picture has more than {limit} bytes", param
                        )
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
                f"{param}: pictures are not fetched from bucket {bucket!r}; allowed buckets: "
                f"{', '.join(allowed) or 'none'} (allowed_s3_buckets)",
                param,
            )
        return await asyncio.to_thread(self._read_s3, bucket, key, param)

    def _read_s3(self, bucket: str, key: str, param: str) -> bytes:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = boto3.client("s3").get_object(Bucket=bucket, Key=key)
            # One byte more than allowed is enough to know.
            body: bytes = answer["Body"].read(self._args.max_image_bytes + 1)
        except (BotoCoreError, ClientError) as error:
            raise InvalidRequest(
                f"{param}: s3://{bucket}/{key} could not be read ({error})", param
            ) from error
        return body


def _digest(pixels: Pixels) -> str:
    shape = repr(pixels.shape).encode()
    return hashlib.sha256(shape + pixels.tobytes()).hexdigest()
