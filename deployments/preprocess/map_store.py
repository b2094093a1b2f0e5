"""The store of what preprocessors made.

The store starts a preprocessor and gives back a reference at once; the map goes straight to the
diffusion replica that is handed the reference, and never through the ingress.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import ray
from ray import ObjectRef
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from deployments.contracts.errors import InvalidRequest, QueueFull
from deployments.contracts.figures import MapFigures
from deployments.contracts.jobs import Pixels
from deployments.contracts.maps import MapRef, MapSpec
from deployments.contracts.refusal import refusing
from deployments.preprocess.map_metrics import MapMetrics
from deployments.tracing.spans import trace_alone

FETCH_TIMEOUT_S = 5.0  # of a map from another node
EMBEDS_BYTES = 2 * 257 * 1664 * 4  # the largest pair in use: hidden states of a ViT-bigG
Handle = DeploymentHandle[object]


@dataclass
class _Starting:
    """A map for which a preprocessor's replica is sought, and how many wait for that."""

    task: "asyncio.Task[ObjectRef[object]]"
    waiting: int = 0


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
        self._starting: dict[str, _Starting] = {}
        self._computed: Counter[str] = Counter()
        self._reused: Counter[str] = Counter()
        self._metrics = MapMetrics()

    @refusing
    async def make(self, spec: MapSpec, picture: Sequence[ObjectRef[Pixels]]) -> MapRef:
        """A reference to the map of `picture` (one reference, in a list so that it is not
        fetched here), made now if it is not remembered. Does not wait for it.

        Refused with `QueueFull` if too many wait for the preprocessor. One that waits for it is
        dropped when all who asked for it have gone.
        """
        known = await self.known(spec)
        if known.ref is not None:
            return known
        # A context of its own, but for the trace: if the request that came first is cancelled,
        # Serve would cancel this call with it, for which others may wait.
        task = asyncio.create_task(self._begin(spec, picture[0]), context=trace_alone())
        starting = self._starting[spec.map_id] = _Starting(task)
        task.add_done_callback(lambda _: self._begun(spec.map_id, starting))
        return await self._joined(spec.map_id, starting)

    async def known(self, spec: MapSpec) -> MapRef:
        """The map if it is remembered, or on its way to a preprocessor; else its `ref` is `None`,
        and it can be made."""
        map_id = spec.map_id
        if map_id in self._stored:
            self._reused[spec.preprocessor] += 1
            self._stored.move_to_end(map_id)
            return MapRef(map_id, self._stored[map_id][0])
        starting = self._starting.get(map_id)
        if starting is None:
            return MapRef(map_id, None)
        self._reused[spec.preprocessor] += 1
        return await self._joined(map_id, starting)

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

    async def check_health(self) -> None:
        """Called by Serve every `health_check_period_s`. Publishes the figures."""
        self._metrics.show(await self.figures())

    async def figures(self) -> MapFigures:
        """What was made and what was reused."""
        computed, reused = dict(self._computed), dict(self._reused)
        return MapFigures(computed, reused, len(self._stored), self._stored_bytes)

    async def _joined(self, map_id: str, starting: "_Starting") -> MapRef:
        starting.waiting += 1
        try:
            return MapRef(map_id, await asyncio.shield(starting.task))
        finally:
            starting.waiting -= 1
            if not starting.waiting and not starting.task.done():
                self._begun(map_id, starting)
                starting.task.cancel()

    def _begun(self, map_id: str, starting: "_Starting") -> None:
        if self._starting.get(map_id) is starting:
            del self._starting[map_id]

    async def _begin(self, spec: MapSpec, picture: ObjectRef[Pixels]) -> "ObjectRef[object]":
        """Has a map made. Waits until a preprocessor's replica takes it, not until it is done."""
        started = self._start(spec, picture)
        try:
            ref = await started._to_object_ref()
        except asyncio.CancelledError:
            started.cancel()
            raise
        except BackPressureError as error:
            raise QueueFull(f"the queue of {spec.preprocessor} is full") from error
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
    """Whether there will be no such map; one in the making has not failed. One that was made may
    be lost with its node: that shows when it is fetched."""
    done, _ = await asyncio.to_thread(ray.wait, [ref], timeout=0, fetch_local=False)
    if not done:
        return False
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            await ref
    except Exception:
        return True
    return False
