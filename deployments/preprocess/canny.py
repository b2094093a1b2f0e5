"""The Serve shell around the edge detector."""

import asyncio

from deployments.contracts.jobs import Pixels
from deployments.contracts.maps import MapSpec
from deployments.preprocess.work import Work


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
            edges = await asyncio.to_thread(work)
            self._work.counted([edges])
        return edges
