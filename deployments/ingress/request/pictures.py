"""Pictures of requests: brought in, held to the limits, decoded within a bounded room."""

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from configs.app import ServiceArgs
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import ImageInput, Pixels
from deployments.ingress.request.budget import check_bytes, check_pictures, check_pixels
from deployments.ingress.request.fetching import Fetcher
from deployments.ingress.request.room import Room
from deployments.ingress.request.workers import AT_ONCE, Workers, together
from preprocessors.image_file import ImageError, Picture, declared_size, read_image


@dataclass(frozen=True, eq=False)
class Brought:
    """A picture that is here, not decoded yet.

    Attributes:
        param: the field that it came in.
        content: a file, or the pixels of a caller in Python.
        pixels: width x height, as its header says.
        name: see `name_of`.
    """

    param: str
    content: bytes | np.ndarray
    pixels: int
    name: str


@dataclass(frozen=True, eq=False)
class Loaded:
    """A decoded picture, on white where it is transparent, and the SHA-256 of its pixels as hex."""

    picture: Picture
    digest: str

    @property
    def pixels(self) -> Pixels:
        """(height, width, 3) uint8."""
        return self.picture.rgb


class Pictures:
    """Brings pictures in, within the service's limits, without holding up the event loop.

    Attributes:
        args: the limits.
        workers: threads for whatever is done with pixels.
        room: what is decoded at a time, over all requests.
    """

    def __init__(self, args: ServiceArgs) -> None:
        self.args = args
        self.workers = Workers("work on pictures")
        self.room = Room(args.max_decoding_pixels)
        self._fetcher = Fetcher(args, self.workers)

    async def bring(self, named: Mapping[str, ImageInput]) -> dict[str, Brought]:
        """The pictures of a request by their fields, fetched side by side and held to all limits,
        of each and together; none is decoded.

        Raises `InvalidRequest` naming the field; the other fetches end with it.
        """
        given = dict(named)
        check_pictures(given, self.args)
        # No request is refused for fetches of its own.
        at_once = min(AT_ONCE, self.args.max_fetches)
        bringing = (self._bring(param, image) for param, image in given.items())
        brought = await together(bringing, at_once)
        files = {one.param: one.content for one in brought if isinstance(one.content, bytes)}
        check_bytes({param: len(file) for param, file in files.items()}, self.args)
        check_pixels({one.param: one.pixels for one in brought}, self.args)
        return {one.param: one for one in brought}

    @asynccontextmanager
    async def decoded(self, *brought: Brought) -> AsyncIterator[tuple[Loaded, ...]]:
        """Pictures with their pixels, which are to be gone at the end of the block: others wait
        for their room. Raises `InvalidRequest` naming the field."""
        async with self.room.taking(sum(one.pixels for one in brought)):
            yield tuple([await self.workers.run(self._load, one) for one in brought])

    async def _bring(self, param: str, given: ImageInput) -> Brought:
        if isinstance(given, np.ndarray):
            name = await self.workers.run(name_of, given)
            return Brought(param, given, given.shape[0] * given.shape[1], name)
        data = given if isinstance(given, bytes) else await self._fetcher.fetch(given, param)
        return await self.workers.run(self._measured, param, data)

    def _measured(self, param: str, data: bytes) -> Brought:
        args = self.args
        try:
            width, height = declared_size(
                data, max_pixels=args.max_image_pixels, max_bytes=args.max_image_bytes
            )
        except ImageError as error:
            raise InvalidRequest(f"{param}: {error}", param) from error
        return Brought(param, data, width * height, name_of(data))

    def _load(self, brought: Brought) -> Loaded:
        if isinstance(brought.content, np.ndarray):
            return _of_array(brought.content)
        args = self.args
        try:
            picture = read_image(
                brought.content, max_pixels=args.max_image_pixels, max_bytes=args.max_image_bytes
            )
        except ImageError as error:
            raise InvalidRequest(f"{brought.param}: {error}", brought.param) from error
        return _seen(picture)


def _of_array(array: np.ndarray) -> Loaded:
    """(height, width, 3) or (height, width, 4) uint8."""
    rgb = np.ascontiguousarray(array[:, :, :3])
    alpha = np.ascontiguousarray(array[:, :, 3]) if array.shape[2] == 4 else None
    return _seen(Picture(rgb, alpha))


def _seen(picture: Picture) -> Loaded:
    """A picture as it acts: on white."""
    seen = picture.on_white()
    return Loaded(seen, _digest(seen.rgb))


def name_of(content: bytes | np.ndarray) -> str:
    """What answers call a picture: "sha256:" and the digest of its file as hex, or of its shape and
    pixels."""
    digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else _digest(content)
    return f"sha256:{digest}"


def _digest(pixels: Pixels) -> str:
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
