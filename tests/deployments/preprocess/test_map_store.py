"""The map store and the batching of preprocessors, without a cluster."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from ray import ObjectRef

from deployments.contracts.errors import GenerationFailed, InvalidRequest
from deployments.contracts.jobs import Pixels
from deployments.contracts.maps import MapRef, MapSpec
from deployments.preprocess.depth import Depth
from deployments.preprocess.map_store import Handle, MapStore
from preprocessors.depth import DepthEstimator

CANNY = MapSpec("canny", "digest", 128, 128)


class SlowStart:
    """A handle whose calls wait for a replica, and end in numbered references."""

    def __init__(self) -> None:
        self.calls = 0
        self.taken = asyncio.Event()
        self.detect = self.estimate = SimpleNamespace(remote=self._start)

    def _start(self, *_: object) -> object:
        self.calls += 1
        number = self.calls

        async def routed() -> object:
            await self.taken.wait()
            return f"map {number}"

        return SimpleNamespace(_to_object_ref=routed)


def store(handle: SlowStart, budget_bytes: int = 10**6) -> MapStore:
    given = cast(Handle, handle)
    return MapStore(budget_bytes, given, given, {})


async def make(maps: MapStore, spec: MapSpec) -> MapRef:
    return await maps.make(spec, [cast("ObjectRef[Pixels]", object())])


def test_a_map_that_waits_for_a_replica_is_not_started_again() -> None:
    async def scene() -> None:
        handle = SlowStart()
        maps = store(handle)
        waiting = [asyncio.create_task(make(maps, CANNY)) for _ in range(10)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()  # the request that came first goes away
        await asyncio.sleep(0.01)
        handle.taken.set()
        found = await asyncio.gather(*waiting[1:])
        assert {ref.ref for ref in found} == {"map 1"}
        assert (await make(maps, CANNY)).ref == "map 1"
        assert handle.calls == 1
        figures = await maps.figures()
        assert figures.computed_total == {"canny": 1}
        assert figures.reused_total == {"canny": 10}
        assert figures.stored_bytes == 128 * 128 * 3

    asyncio.run(scene())


def test_the_least_recently_used_map_goes_first() -> None:
    async def scene() -> None:
        handle = SlowStart()
        handle.taken.set()
        maps = store(handle, budget_bytes=2 * 128 * 128 * 3)
        specs = [MapSpec(kind, "digest", 128, 128) for kind in ("canny", "depth")]
        first, second = [await make(maps, spec) for spec in specs]
        assert (await maps.find(first.map_id)).ref is not None
        await make(maps, MapSpec("canny", "other", 128, 128))
        assert (await maps.find(first.map_id)).ref is not None
        assert (await maps.find(second.map_id)).ref is None
        assert (await maps.figures()).stored_bytes == 2 * 128 * 128 * 3

    asyncio.run(scene())


def test_what_is_not_deployed_is_refused_and_not_counted() -> None:
    async def scene() -> None:
        maps = MapStore(10**6, cast(Handle, SlowStart()), None, {})
        with pytest.raises(InvalidRequest, match="preprocessed: true"):
            await make(maps, MapSpec("depth", "digest", 128, 128))
        with pytest.raises(InvalidRequest, match="'vit' is not deployed"):
            await make(maps, MapSpec("image_encoder", "digest", encoder="vit"))
        assert (await maps.figures()).computed_total == {}

    asyncio.run(scene())


def test_a_picture_without_depth_fails_alone() -> None:
    sizes_of_batches: list[int] = []

    class Estimator:
        """Fails with black pictures."""

        def estimate(
            self, images: Sequence[Pixels], sizes: Sequence[tuple[int, int]]
        ) -> list[Pixels]:
            sizes_of_batches.append(len(images))
            if any(not image.any() for image in images):
                raise FloatingPointError("no depth")
            return [np.full((height, width, 3), 9, np.uint8) for width, height in sizes]

    class Stub(Depth):
        def __init__(self) -> None:
            self._model = cast(DepthEstimator, Estimator())

    batch = [(np.full((8, 8, 3), value, np.uint8), (16, 8)) for value in (1, 0, 2)]
    first, black, last = Stub()._estimate(batch)
    assert isinstance(black, GenerationFailed)
    assert isinstance(first, np.ndarray)
    assert isinstance(last, np.ndarray)
    assert first.shape == last.shape == (8, 16, 3)
    assert sizes_of_batches == [3, 1, 1, 1]
