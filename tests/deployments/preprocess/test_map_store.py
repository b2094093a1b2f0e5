"""The map store and the batching of preprocessors, without a cluster."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast
from weakref import ref

import numpy as np
import pytest
from ray import ObjectRef
from ray.serve.exceptions import BackPressureError

from demo.service import ROOT
from deployments.contracts.errors import GenerationFailed, InvalidRequest, QueueFull
from deployments.contracts.jobs import Pixels
from deployments.contracts.maps import MapRef, MapSpec
from deployments.contracts.refusal import accepted
from deployments.preprocess.depth import Depth
from deployments.preprocess.image_encoder import ImageEncoder
from deployments.preprocess.map_store import Handle, MapStore
from deployments.preprocess.work import Work, made, one_fails_alone
from preprocessors.depth import DepthEstimator

CANNY = MapSpec("canny", "digest", 128, 128)


class SlowStart:
    """A handle whose calls wait for a replica, and end in numbered references."""

    def __init__(self) -> None:
        self.calls = self.cancelled = 0
        self.full = False
        self.taken = asyncio.Event()
        self.detect = self.estimate = SimpleNamespace(remote=self._start)

    def _start(self, *_: object) -> object:
        self.calls += 1
        number = self.calls

        async def routed() -> object:
            await self.taken.wait()
            if self.full:
                raise BackPressureError(1, 1)
            return f"map {number}"

        def cancel() -> None:
            self.cancelled += 1

        return SimpleNamespace(_to_object_ref=routed, cancel=cancel)


def store(handle: SlowStart, budget_bytes: int = 10**6) -> MapStore:
    given = cast(Handle, handle)
    return MapStore(budget_bytes, given, given, {})


async def make(maps: MapStore, spec: MapSpec) -> MapRef:
    return accepted(await maps.make(spec, [cast("ObjectRef[Pixels]", object())]))


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


def test_a_map_for_which_nobody_waits_any_more_leaves_the_queue() -> None:
    async def scene() -> None:
        handle = SlowStart()
        maps = store(handle)
        waiting = [asyncio.create_task(make(maps, CANNY)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in waiting[:2]:
            task.cancel()
        await asyncio.sleep(0.01)
        assert handle.cancelled == 0
        waiting[2].cancel()
        again = asyncio.create_task(make(maps, CANNY))  # at once: it must not join what ends
        await asyncio.sleep(0.01)
        assert handle.cancelled == 1
        handle.taken.set()
        assert (await again).ref == "map 2"

    asyncio.run(scene())


def test_what_is_known_needs_no_picture() -> None:
    async def scene() -> None:
        handle = SlowStart()
        maps = store(handle)
        assert (await maps.known(CANNY)).ref is None
        made = asyncio.create_task(make(maps, CANNY))
        await asyncio.sleep(0.01)
        joined = asyncio.create_task(maps.known(CANNY))
        await asyncio.sleep(0.01)
        handle.taken.set()
        assert (await joined).ref == (await made).ref == (await maps.known(CANNY)).ref == "map 1"
        figures = await maps.figures()
        assert (figures.computed_total, figures.reused_total) == ({"canny": 1}, {"canny": 2})

    asyncio.run(scene())


def test_a_full_queue_is_a_refusal_and_nothing_is_kept() -> None:
    async def scene() -> None:
        handle = SlowStart()
        handle.full = True
        handle.taken.set()
        maps = store(handle)
        with pytest.raises(QueueFull, match="queue of canny is full"):
            await make(maps, CANNY)
        handle.full = False
        assert (await make(maps, CANNY)).ref == "map 2"

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


@pytest.mark.parametrize("fault", [FloatingPointError, RuntimeError, ValueError])
def test_a_picture_that_cannot_be_preprocessed_fails_alone(fault: type[Exception]) -> None:
    sizes_of_batches: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        sizes_of_batches.append(len(items))
        if 0 in items:
            raise fault("no depth")
        return [10 * item for item in items]

    first, bad, last = one_fails_alone(work, [1, 0, 2])
    assert (first, last) == (10, 20)
    assert isinstance(bad, GenerationFailed)
    assert "no depth" in str(bad)
    assert sizes_of_batches == [3, 1, 1, 1]
    assert one_fails_alone(work, [3, 4]) == [30, 40]
    with pytest.raises(GenerationFailed, match="no depth"):
        made(bad)


def test_what_a_failed_batch_took_is_free_before_its_pictures_are_tried_alone() -> None:
    class Room:
        pass

    rooms: list[ref[Room]] = []
    kept: list[bool] = []

    def work(items: Sequence[int]) -> Sequence[int]:
        kept.extend(room() is not None for room in rooms)
        room = Room()
        rooms.append(ref(room))
        if len(items) > 1:
            raise MemoryError
        return items

    assert one_fails_alone(work, [1, 2]) == [1, 2]
    assert kept == [False, False, False]


BROKEN_DEVICE = """
import logging, torch
from deployments.preprocess.work import one_fails_alone

def work(items):
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

logging.basicConfig()
one_fails_alone(work, [1, 2])
print("still there")
"""


def test_a_process_ends_with_its_device() -> None:
    """It would fail faster than others work, and be sent the most."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_DEVICE], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert not done.stdout
    assert "the device failed; this replica ends" in done.stderr
    assert "an illegal memory access" in done.stderr


def test_a_picture_counts_as_made_or_as_failed() -> None:
    def work(items: Sequence[int]) -> Sequence[float]:
        return [1 / item for item in items]

    counted = Work()
    with counted.of(3):
        counted.counted(one_fails_alone(work, [1, 0, 2]))
    assert (counted.made, counted.failed) == (2, 1)
    with pytest.raises(ZeroDivisionError), counted.of(2):
        work([1, 0])
    assert (counted.made, counted.failed) == (2, 3)


def test_a_picture_that_cannot_be_encoded_fails_alone() -> None:
    class Model:
        def encode(self, images: Sequence[Pixels], *, hidden: bool) -> list[bool]:
            if any(not image.any() for image in images):
                raise RuntimeError("black")
            return [hidden] * len(images)

    async def scene() -> None:
        served = object.__new__(ImageEncoder)
        served._model, served._work = cast(Any, Model()), Work()
        images = [np.full((8, side, 3), side % 8, np.uint8) for side in (4, 8, 9)]
        first, black, last = await served._encode(images, hidden=True)
        assert isinstance(black, GenerationFailed)
        assert cast(object, first) is cast(object, last) is True

    asyncio.run(scene())


def test_a_picture_without_depth_fails_alone() -> None:
    class Estimator:
        def estimate(
            self, images: Sequence[Pixels], sizes: Sequence[tuple[int, int]]
        ) -> list[Pixels]:
            if any(not image.any() for image in images):
                raise FloatingPointError("no depth")
            return [np.full((height, width, 3), 9, np.uint8) for width, height in sizes]

    served = object.__new__(Depth)
    served._model = cast(DepthEstimator, Estimator())
    batch = [(np.full((8, 8, 3), value, np.uint8), (16, 8)) for value in (1, 0, 2)]
    first, black, last = one_fails_alone(served._estimate, batch)
    assert isinstance(black, GenerationFailed)
    assert isinstance(first, np.ndarray)
    assert isinstance(last, np.ndarray)
    assert first.shape == last.shape == (8, 16, 3)
