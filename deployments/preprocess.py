"""The Serve shells around `preprocessors/`, and the store of what they made.

The store starts a preprocessor and gives back a reference at once; the map goes straight to the
diffusion replica that is handed the reference, and never through the ingress.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context
from time import perf_counter
from typing import cast

import numpy as np
import ray
from ray import ObjectRef, serve
from ray.serve import metrics
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from configs.app import PreprocessorArgs
from configs.sources import fetch
from deployments.contracts.errors import GenerationFailed, InvalidRequest
from deployments.contracts.figures import MapFigures
from deployments.contracts.jobs import Embeds, Pixels
from deployments.contracts.maps import MapRef, MapSpec

MAX_BATCH = 8
BATCH_SECONDS = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
EMBEDS_BYTES = 2 * 257 * 1664 * 4  # the largest pair in use: hidden states of a ViT-bigG
Handle = DeploymentHandle[object]
Sized = tuple[Pixels, tuple[int, int]]  # a picture, and (width, height) of its map


class Work:
    """Counts a preprocessor's work as Ray metrics, which every node exports to Prometheus."""

    def __init__(self) -> None:
        self._pictures = metrics.Counter("tcd_preprocessor_pictures", "pictures preprocessed")
        self._seconds = metrics.Histogram(
            "tcd_preprocessor_batch_seconds", "time of one batch of pictures", BATCH_SECONDS
        )

    @contextmanager
    def of(self, pictures: int) -> Iterator[None]:
        """A batch of so many; one that fails is not counted."""
        started = perf_counter()
        yield
        self._pictures.inc(pictures)
        self._seconds.observe(perf_counter() - started)


class Depth:
    """Depth estimation by DPT, batched."""

    def __init__(self, args: PreprocessorArgs) -> None:
        from preprocessors.depth import DepthEstimator

        folder = fetch(args.checkpoint)
        self._model: DepthEstimator = DepthEstimator(folder, args.device, args.dtype)
        self._work = Work()

    async def estimate(self, image: Pixels, spec: MapSpec) -> Pixels:
        """(height, width, 3) uint8 of the size that `spec` says."""
        made: Pixels | GenerationFailed = await self._batch((image, (spec.width, spec.height)))
        if isinstance(made, GenerationFailed):
            raise made
        return made

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.005)
    async def _batch(self, items: list[Sized]) -> list[Pixels | GenerationFailed]:
        with self._work.of(len(items)):
            return await asyncio.to_thread(self._estimate, items)

    def _estimate(self, items: Sequence[Sized]) -> list[Pixels | GenerationFailed]:
        images, sizes = [image for image, _ in items], [size for _, size in items]
        try:
            return list(self._model.estimate(images, sizes))
        except FloatingPointError as error:  # whose fault it is shows when each is alone
            if len(items) == 1:
                return [GenerationFailed(str(error))]
            return [made for item in items for made in self._estimate([item])]


class Canny:
    """Canny edges. Runs without torch."""

    def __init__(self) -> None:
        self._work = Work()

    async def detect(self, image: Pixels, spec: MapSpec) -> Pixels:
        """(height, width, 3) uint8 of the size that `spec` says."""
        from preprocessors.canny import canny
        from preprocessors.resize import resize

        def work() -> Pixels:
            sized = resize(image, (spec.width, spec.height))
            return canny(sized, spec.low_threshold, spec.high_threshold)

        with self._work.of(1):
            return await asyncio.to_thread(work)


class ImageEncoder:
    """CLIP vision embeddings for IP-Adapters, batched."""

    def __init__(self, args: PreprocessorArgs) -> None:
        from preprocessors.image_encoder import ImageEncoder as Encoder

        self._model: Encoder = Encoder(fetch(args.checkpoint), args.device, args.dtype)
        self._work = Work()

    async def encode(self, image: Pixels, spec: MapSpec) -> Embeds:
        """(2, ...) float32: the embedding of the picture, and that of no picture."""
        embedding = await (self._hidden(image) if spec.hidden else self._projected(image))
        return np.stack([embedding, self._model.unconditional(hidden=spec.hidden)])

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.005)
    async def _projected(self, images: list[Pixels]) -> list[Embeds]:
        return await self._encode(images, hidden=False)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.005)
    async def _hidden(self, images: list[Pixels]) -> list[Embeds]:
        return await self._encode(images, hidden=True)

    async def _encode(self, images: Sequence[Pixels], *, hidden: bool) -> list[Embeds]:
        with self._work.of(len(images)):
            return await asyncio.to_thread(self._model.encode, images, hidden=hidden)


class MapStore:
    """Remembers preprocessed pictures by content, within a budget, and has the others made.

    One replica: what one ingress had made, another finds.

    Args:
        canny, depth, image_encoders: handles of the preprocessors; `None`: not deployed.
    """

    def __init__(
        self,
        budget_bytes: int,
        canny: Handle,
        depth: Handle | None,
        image_encoders: Mapping[str, Handle],
    ) -> None:
        self._budget_bytes = budget_bytes
        self._canny = canny
        self._depth = depth
        self._image_encoders = image_encoders
        self._stored: OrderedDict[str, tuple[ObjectRef[object], int]] = OrderedDict()
        self._stored_bytes = 0
        self._starting: dict[str, asyncio.Task[ObjectRef[object]]] = {}
        self._computed: Counter[str] = Counter()
        self._reused: Counter[str] = Counter()

    async def make(self, spec: MapSpec, picture: Sequence[ObjectRef[Pixels]]) -> MapRef:
        """A reference to the map of `picture` (one reference, in a list so that it is not
        fetched here), made now if it is not remembered. Does not wait for it."""
        map_id = spec.map_id
        if map_id in self._stored:
            self._reused[spec.preprocessor] += 1
            self._stored.move_to_end(map_id)
            return MapRef(map_id, self._stored[map_id][0])
        starting = self._starting.get(map_id)
        if starting is None:
            # A context of its own: if the request that came first is cancelled, Serve would cancel
            # this call with it, for which others may wait.
            starting = asyncio.create_task(self._begin(spec, picture[0]), context=Context())
            self._starting[map_id] = starting
            starting.add_done_callback(lambda _: self._starting.pop(map_id))
        else:
            self._reused[spec.preprocessor] += 1
        return MapRef(map_id, await asyncio.shield(starting))

    async def find(self, map_id: str) -> MapRef:
        """The map of an id that was given out before; its `ref` is `None` if it is gone."""
        if map_id not in self._stored:
            return MapRef(map_id, None)
        self._stored.move_to_end(map_id)
        return MapRef(map_id, self._stored[map_id][0])

    async def forget_failed(self, map_ids: Sequence[str]) -> None:
        """Drops those that could not be made, so that the next request tries again."""
        for map_id in map_ids:
            known = self._stored.get(map_id)
            failed = known is not None and await _has_failed(known[0])
            if failed and self._stored.get(map_id) is known:
                self._stored_bytes -= self._stored.pop(map_id)[1]

    async def figures(self) -> MapFigures:
        """What was made and what was reused."""
        computed, reused = dict(self._computed), dict(self._reused)
        return MapFigures(computed, reused, len(self._stored), self._stored_bytes)

    async def _begin(self, spec: MapSpec, picture: ObjectRef[Pixels]) -> "ObjectRef[object]":
        """Has a map made. Waits until a preprocessor's replica takes it, not until it is done."""
        ref = await self._start(spec, picture)._to_object_ref()
        self._computed[spec.preprocessor] += 1
        self._remember(spec.map_id, ref, spec.width * spec.height * 3 or EMBEDS_BYTES)
        return ref

    def _start(self, spec: MapSpec, picture: ObjectRef[Pixels]) -> DeploymentResponse[object]:
        if spec.preprocessor == "canny":
            started = self._canny.detect.remote(picture, spec)
        elif spec.preprocessor == "depth":
            if self._depth is None:
                raise InvalidRequest(
                    "no depth estimator is deployed; send the depth map itself with "
                    "preprocessed: true",
                    "controls",
                )
            started = self._depth.estimate.remote(picture, spec)
        else:
            encoder = self._image_encoders.get(spec.encoder)
            if encoder is None:
                raise InvalidRequest(
                    f"image encoder {spec.encoder!r} is not deployed", "ip_adapter"
                )
            started = encoder.encode.remote(picture, spec)
        return cast(DeploymentResponse[object], started)

    def _remember(self, map_id: str, ref: "ObjectRef[object]", nbytes: int) -> None:
        self._stored[map_id] = (ref, nbytes)
        self._stored_bytes += nbytes
        while self._stored_bytes > self._budget_bytes and len(self._stored) > 1:
            _, (_, freed) = self._stored.popitem(last=False)
            self._stored_bytes -= freed


async def _has_failed(ref: "ObjectRef[object]") -> bool:
    """Whether there will be no such map; one in the making has not failed."""
    done, _ = await asyncio.to_thread(ray.wait, [ref], timeout=0)
    if not done:
        return False
    try:
        await ref
    except Exception:
        return True
    return False
