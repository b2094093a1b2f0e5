"""The Serve shell around the depth estimator."""

import asyncio
from collections.abc import Sequence

from ray import serve

from configs.app import PreprocessorArgs
from configs.needs import Need
from configs.sources import fetch
from deployments.contracts.errors import GenerationFailed
from deployments.contracts.jobs import Pixels
from deployments.contracts.maps import MapSpec
from deployments.preprocess.work import MAX_BATCH, Work, made, one_fails_alone
from deployments.starting import starting

Sized = tuple[Pixels, tuple[int, int]]  # a picture, and (width, height) of its map


class Depth:
    """Depth estimation by DPT, batched."""

    def __init__(self, args: PreprocessorArgs) -> None:
        with starting([Need(args.checkpoint)]):
            from preprocessors.depth import DepthEstimator

        folder = fetch(args.checkpoint)
        self._model: DepthEstimator = DepthEstimator(folder, args.device, args.dtype)
        self._work = Work()

    async def estimate(self, image: Pixels, spec: MapSpec) -> Pixels:
        """(height, width, 3) uint8 of the size that `spec` says."""
        depth: Pixels = made(await self._batch((image, (spec.width, spec.height))))
        return depth

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.005)
    async def _batch(self, items: list[Sized]) -> list[Pixels | GenerationFailed]:
        with self._work.of(len(items)):
            return self._work.counted(
                await asyncio.to_thread(one_fails_alone, self._estimate, items)
            )

    def _estimate(self, items: Sequence[Sized]) -> list[Pixels]:
        return self._model.estimate([image for image, _ in items], [size for _, size in items])
