"""What the map store makes of pictures: control maps and embeddings, by reference."""

import logging
from collections.abc import Awaitable, Callable
from typing import cast

import ray
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from deployments.contracts.errors import MAX_QUOTED, NotFound
from deployments.contracts.figures import MapFigures
from deployments.contracts.jobs import Pixels
from deployments.contracts.maps import MapRef, MapSpec
from deployments.contracts.refusal import Refusal, accepted
from deployments.ingress.discovery.asking import asked
from deployments.ingress.request.pictures import Brought, Loaded, Pictures
from preprocessors.resize import resize

FIGURES_S = 0.5
log = logging.getLogger("ray.serve.tcd.maps")


class Maps:
    """Asks the map store.

    Args:
        pictures: decodes what maps are made of.
        store: its handle.
    """

    def __init__(self, pictures: Pictures, store: DeploymentHandle[object]) -> None:
        self._pictures = pictures
        self._store = store
        self._figures = MapFigures({}, {}, 0, 0)

    async def of(self, brought: Brought, spec_of: Callable[[Loaded], MapSpec]) -> MapRef:
        """The map of a picture: the one that the store has, or one that is made now."""
        async with self._pictures.decoded(brought) as (loaded,):
            spec = spec_of(loaded)
        # Without the picture: a store that is silent keeps nobody else out of the room for pixels.
        known = await asked(cast(DeploymentResponse[MapRef], self._store.known.remote(spec)))
        if known.ref is not None:
            return known
        # It is decoded anew: its pixels were not to be kept while the store was asked.
        async with self._pictures.decoded(brought) as (loaded,):
            picture = await self._pictures.workers.run(_put, spec, loaded.pixels)
        return await self.make(spec, picture)

    async def make(self, spec: MapSpec, picture: object) -> MapRef:
        """A map that is made now, if it is not known.

        Args:
            picture: a reference to pixels, or to another map.
        """
        # In a list, so that the store does not fetch it.
        making = self._store.make.remote(spec, [picture])
        return accepted(await asked(cast(DeploymentResponse[MapRef | Refusal], making)))

    async def named(self, map_id: str, param: str) -> MapRef:
        """A map by its id, which came in the field `param`. Raises `NotFound`."""
        found = await asked(cast(DeploymentResponse[MapRef], self._store.find.remote(map_id)))
        if found.ref is None:
            raise NotFound(
                f"{param}: control map {map_id[:MAX_QUOTED]!r} is not (or no longer) known; send "
                "the picture itself, or have the map made again",
                param,
            )
        return found

    async def pixels(self, map_: MapRef) -> Pixels:
        """A control map itself. If it could not be made, it can be tried again."""
        try:
            return await cast(Awaitable[Pixels], map_.ref)
        except Exception:
            await self.forget_failed((map_.map_id,))
            raise

    async def forget_failed(self, map_ids: tuple[str, ...]) -> None:
        """A call with these maps failed: whichever could not be made must be tried again."""
        if map_ids:
            await asked(cast(DeploymentResponse[None], self._store.forget_failed.remote(map_ids)))

    async def figures(self) -> MapFigures:
        """What the store made and reused; the last known if it is silent."""
        response = cast(DeploymentResponse[MapFigures], self._store.figures.remote())
        try:
            self._figures = await asked(response, FIGURES_S)
        except Exception as error:
            log.warning("the map store has no figures: %r", error)
        return self._figures


def _put(spec: MapSpec, pixels: Pixels) -> object:
    """A reference to the picture of which a map is made. Canny's are made of the map's size: a
    larger picture need not travel."""
    size = (spec.width, spec.height)
    smaller = spec.preprocessor == "canny" and spec.width * spec.height * 3 < pixels.nbytes
    return ray.put(resize(pixels, size) if smaller else pixels)
