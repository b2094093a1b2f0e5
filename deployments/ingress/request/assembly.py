"""A request made ready for a replica: gaps filled, pictures brought in, maps on their way."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import ray
from ray.serve.handle import DeploymentHandle

from deployments.contracts.cards import ModelCard
from deployments.contracts.errors import InvalidRequest, NotFound
from deployments.contracts.figures import MapFigures
from deployments.contracts.jobs import (
    Control,
    ControlUse,
    ImageInput,
    ImageJob,
    ImageRequest,
    IpAdapterUse,
    Mask,
    Pixels,
)
from deployments.contracts.maps import MapRef, MapSpec, is_map_id
from deployments.contracts.routes import Router
from deployments.ingress.request.filling import image_job, image_size
from deployments.ingress.request.pictures import Loaded, Pictures
from preprocessors.image_file import edit_mask
from preprocessors.resize import resize

HALF = 128  # of 255: from here on a mask counts as "make anew"


@dataclass(frozen=True)
class Assembled:
    """A job, and what goes with it.

    Attributes:
        assets: arrays, and references to maps that may still be in the making; each is
            an argument of its own in the call to the replica.
        map_ids: the maps among them; to be forgotten if the call fails.
        original, mask: with a mask whose surroundings are to come back as they were.
    """

    job: ImageJob
    assets: tuple[object, ...] = ()
    map_ids: tuple[str, ...] = ()
    original: Pixels | None = None
    mask: Mask | None = None

    def restored(self, pixels: Pixels) -> Pixels:
        """An answer's picture with the pixels outside the mask as they were."""
        if self.original is None or self.mask is None:
            return pixels
        return np.where(self.mask[:, :, None] >= HALF, pixels, self.original)


@dataclass
class _Parts:
    """Assets and maps as they are gathered."""

    assets: list[object] = field(default_factory=list)
    map_ids: list[str] = field(default_factory=list)

    def add(self, asset: object) -> int:
        """Its index."""
        self.assets.append(asset)
        return len(self.assets) - 1

    def add_map(self, found: MapRef) -> int:
        """Its index."""
        self.map_ids.append(found.map_id)
        return self.add(found.ref)


class Assembler:
    """Makes requests ready.

    Args:
        maps: the map store's handle.
        route: which preprocessors a request needs (`graphs.routing`).
    """

    def __init__(self, pictures: Pictures, maps: DeploymentHandle[object], route: Router) -> None:
        self._pictures = pictures
        self._maps = maps
        self._route = route

    async def assemble(self, request: ImageRequest, card: ModelCard) -> Assembled:
        """The job that a request means for a model, without its time, which is running already.
        Raises `InvalidRequest` or `NotFound`."""
        _check(request, card)
        start, mask_picture = await asyncio.gather(
            self._optional(request.image, "image"), self._optional(request.mask, "mask")
        )
        width, height = image_size(request, card, None if start is None else start.picture.size)
        parts = _Parts()
        original: Pixels | None = None
        mask: Mask | None = None
        if start is not None:
            original = await asyncio.to_thread(resize, start.pixels, (width, height))
            parts.add(original)
            mask = await asyncio.to_thread(_mask, start, mask_picture, (width, height))
            if mask is not None:
                parts.add(mask)
        controls = await self._controls(request, (width, height), parts)
        ip_adapter = await self._ip_adapter(request, card, parts)
        job = image_job(
            request,
            card,
            (width, height),
            image=None if start is None else 0,
            mask=None if mask is None else 1,
            controls=controls,
            ip_adapter=ip_adapter,
        )
        keep = mask is not None and request.preserve_unmasked
        return Assembled(
            job,
            tuple(parts.assets),
            tuple(parts.map_ids),
            original if keep else None,
            mask if keep else None,
        )

    async def preprocess(self, control: Control) -> tuple[str, Pixels]:
        """A control map of the picture's own size: its id, and the map itself."""
        _check_thresholds(control)
        loaded = await self._pictures.load(control.image, "image")
        spec = _control_spec(control, control.type, loaded, loaded.picture.size)
        found = await self._make(spec, loaded)
        try:
            return found.map_id, await cast(Awaitable[Pixels], found.ref)
        except Exception:
            await self.forget_failed((found.map_id,))
            raise

    async def forget_failed(self, map_ids: tuple[str, ...]) -> None:
        """A call with these maps failed: whichever could not be made must be tried again."""
        if map_ids:
            await self._maps.forget_failed.remote(map_ids)

    async def map_figures(self) -> MapFigures:
        """What the map store made and reused."""
        figures: MapFigures = await self._maps.figures.remote()
        return figures

    async def _optional(self, given: ImageInput | None, param: str) -> Loaded | None:
        return None if given is None else await self._pictures.load(given, param)

    async def _controls(
        self, request: ImageRequest, size: tuple[int, int], parts: _Parts
    ) -> tuple[ControlUse, ...]:
        routed = {r.index: r.preprocessor for r in self._route(request) if r.field == "controls"}

        async def bring(index: int, control: Control) -> MapRef | Pixels:
            param = f"controls.{index}.image"
            if is_map_id(control.image):
                return await self._named_map(control.image, param)
            loaded = await self._pictures.load(control.image, param)
            if index not in routed:
                return await asyncio.to_thread(resize, loaded.pixels, size)
            place = f"controls.{index}."
            spec = _control_spec(control, routed[index], loaded, size, place)
            return await self._make(spec, loaded)

        brought = await asyncio.gather(
            *(bring(index, control) for index, control in enumerate(request.controls))
        )
        return tuple(
            ControlUse(
                control.type,
                parts.add_map(found) if isinstance(found, MapRef) else parts.add(found),
                control.conditioning_scale,
                control.start,
                control.end,
            )
            for control, found in zip(request.controls, brought, strict=True)
        )

    async def _ip_adapter(
        self, request: ImageRequest, card: ModelCard, parts: _Parts
    ) -> IpAdapterUse | None:
        if request.ip_adapter is None:
            return None
        if card.image_encoder is None:
            raise InvalidRequest(f"model {card.id!r} has no IP-Adapter", "ip_adapter")
        encoder, hidden = card.image_encoder, card.image_encoder_hidden

        async def bring(index: int, image: ImageInput) -> MapRef:
            param = f"ip_adapter.image.{index}"
            if is_map_id(image):
                # The map goes from its preprocessor to the encoder; its id tells what it shows.
                found = await self._named_map(image, param)
                spec = MapSpec("image_encoder", image, encoder=encoder, hidden=hidden)
                return cast(MapRef, await self._maps.make.remote(spec, [found.ref]))
            loaded = await self._pictures.load(image, param)
            spec = MapSpec("image_encoder", loaded.digest, encoder=encoder, hidden=hidden)
            return await self._make(spec, loaded)

        found = await asyncio.gather(
            *(bring(index, image) for index, image in enumerate(request.ip_adapter.images))
        )
        embeds = tuple(parts.add_map(ref) for ref in found)
        return IpAdapterUse(embeds, request.ip_adapter.scale)

    async def _make(self, spec: MapSpec, loaded: Loaded) -> MapRef:
        picture = await asyncio.to_thread(ray.put, loaded.pixels)
        made: MapRef = await self._maps.make.remote(spec, [picture])
        return made

    async def _named_map(self, map_id: str, param: str) -> MapRef:
        found: MapRef = await self._maps.find.remote(map_id)
        if found.ref is None:
            raise NotFound(f"{param}: control map {map_id!r} is not (or no longer) known", param)
        return found


def _check(request: ImageRequest, card: ModelCard) -> None:
    if (request.width is None) != (request.height is None):
        raise InvalidRequest("width and height come together or not at all", "size")
    if request.image is None:
        for param, given in (("mask", request.mask), ("strength", request.strength)):
            if given is not None:
                raise InvalidRequest(f"{param} needs an image", param)
    unknown = [c.type for c in request.controls if c.type not in card.controls]
    if unknown:
        known = ", ".join(sorted(card.controls)) or "none"
        raise InvalidRequest(
            f"model {card.id!r} has no control {unknown[0]!r}; it has: {known}", "controls"
        )
    for index, control in enumerate(request.controls):
        _check_thresholds(control, f"controls.{index}.")


def _check_thresholds(control: Control, place: str = "") -> None:
    ready = control.preprocessed or is_map_id(control.image)
    for name, given in (
        ("low_threshold", control.low_threshold),
        ("high_threshold", control.high_threshold),
    ):
        if given is not None and (control.type != "canny" or ready):
            raise InvalidRequest(
                f"{place}{name} has an effect only on canny maps made here", place + name
            )


def _mask(start: Loaded, given: Loaded | None, size: tuple[int, int]) -> Mask | None:
    """The mask: a picture of its own, or else where the start picture is transparent."""
    if given is None:
        alpha = start.picture.alpha
        if alpha is None or not (alpha < HALF).any():
            return None
        return resize(edit_mask(start.picture), size)
    if given.picture.size != start.picture.size:
        raise InvalidRequest(
            "mask and image must have the same size; they have "
            f"{_shown(given.picture.size)} and {_shown(start.picture.size)}",
            "mask",
        )
    return resize(edit_mask(given.picture), size)


def _control_spec(
    control: Control, preprocessor: str, loaded: Loaded, size: tuple[int, int], place: str = ""
) -> MapSpec:
    plain = MapSpec(preprocessor, loaded.digest, *size)
    if preprocessor != "canny":
        return plain
    low = plain.low_threshold if control.low_threshold is None else control.low_threshold
    high = plain.high_threshold if control.high_threshold is None else control.high_threshold
    if low > high:
        raise InvalidRequest(
            f"{place}low_threshold {low} is above high_threshold {high}", place + "low_threshold"
        )
    return MapSpec("canny", loaded.digest, *size, low, high)


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
