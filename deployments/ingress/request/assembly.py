"""A request made ready for a replica: gaps filled, pictures brought in, maps on their way."""

from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from typing import cast

import numpy as np
from ray.serve.handle import DeploymentHandle

from deployments.contracts.cards import CardIpAdapter, ModelCard
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import (
    Control,
    ControlUse,
    ImageInput,
    ImageJob,
    ImageRequest,
    IpAdapter,
    IpAdapterUse,
    Mask,
    Pixels,
    VideoRequest,
)
from deployments.contracts.maps import MapRef, MapSpec, is_map_id
from deployments.contracts.recipe import Recipe
from deployments.contracts.routes import Router
from deployments.ingress.request.budget import check_maps, named_maps, pictures_of
from deployments.ingress.request.filling import image_job, video_job, wanted_size
from deployments.ingress.request.maps import Maps
from deployments.ingress.request.pictures import Brought, Loaded, Pictures
from deployments.ingress.request.recipes import image_recipe, video_recipe
from deployments.ingress.request.workers import together
from deployments.tracing.spans import span
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
        recipe: what the answer says of it.
    """

    job: ImageJob
    assets: tuple[object, ...] = ()
    map_ids: tuple[str, ...] = ()
    original: Pixels | None = None
    mask: Mask | None = None
    recipe: Recipe | None = None

    @property
    def start(self) -> Pixels | None:
        """The picture to start from, in the size of what is made."""
        return None if self.job.image is None else cast(Pixels, self.assets[self.job.image])

    def restored(self, pixels: Pixels) -> Pixels:
        """An answer's picture with the pixels outside the mask as they were. Within it, where it is
        grey, they are mixed, from nothing at `HALF` to all at white: soft edges."""
        if self.original is None or self.mask is None:
            return pixels
        share = np.maximum(self.mask, HALF)[:, :, None].astype(np.uint16) - HALF
        most = 255 - HALF
        mixed = pixels * share + self.original * (most - share)
        return ((mixed + most // 2) // most).astype(np.uint8)


@dataclass(frozen=True)
class Outline:
    """What is known of a job before any work for it.

    Attributes:
        pictures: those of the request, by field.
    """

    model: str
    job: ImageJob
    pictures: Mapping[str, Brought]


@dataclass
class _Parts:
    """Assets and maps as they are gathered."""

    assets: list[object] = field(default_factory=list)
    map_ids: list[str] = field(default_factory=list)

    def add(self, asset: Pixels | Mask | MapRef) -> int:
        """Its index."""
        if isinstance(asset, MapRef):
            self.map_ids.append(asset.map_id)
        self.assets.append(asset.ref if isinstance(asset, MapRef) else asset)
        return len(self.assets) - 1


class Assembler:
    """Makes requests ready.

    Args:
        pictures: brings them in; whoever else looks at some shares its room.
        maps: the map store's handle.
        route: which preprocessors a request needs (`graphs.routing`).

    Attributes:
        maps: what the store makes.
    """

    def __init__(self, pictures: Pictures, maps: DeploymentHandle[object], route: Router) -> None:
        self.pictures = pictures
        self.maps = Maps(pictures, maps)
        self._route = route

    async def assemble(self, request: ImageRequest | VideoRequest, card: ModelCard) -> Assembled:
        """The job that a request means for a model, without its time, which is running already.

        All pictures are brought in and held to the limits before the first is decoded; when one
        fails, what was begun for the others ends with it. Raises `InvalidRequest` or `NotFound`.
        """
        brought = await self._brought(request, card)
        size, start, mask = await self._start(request, card, brought)
        parts = _Parts()
        for picture in (start, mask):
            if picture is not None:
                parts.add(picture)
        job = _job(request, card, size, start, mask)
        followed = self._followed(request, size, brought)
        for condition in await together(
            chain(followed, self._resembled(request, card, size, brought))
        ):
            parts.add(condition)
        assets, map_ids, names = tuple(parts.assets), tuple(parts.map_ids), _names(brought)
        if isinstance(request, VideoRequest):
            recipe = video_recipe(request, card.id, job, names)
            return Assembled(job, assets, map_ids, recipe=recipe)
        keep = mask is not None and request.preserve_unmasked
        return Assembled(
            job,
            assets,
            map_ids,
            start if keep else None,
            mask if keep else None,
            image_recipe(request, card.id, job, names),
        )

    async def outline(self, request: ImageRequest | VideoRequest, card: ModelCard) -> Outline:
        """The job that `assemble` would make, before any work for it: its pictures can be read, the
        maps that it names are known, and none is made. Raises what `assemble` does, but for masks
        of IP-Adapters that ask for nothing."""
        brought = await self._brought(request, card)
        size, start, mask = await self._start(request, card, brought)
        for param, one in brought.items():
            if param not in ("image", "mask"):
                async with self.pictures.decoded(one):
                    pass
        await together(
            self.maps.named(map_id, param) for param, map_id in named_maps(request).items()
        )
        return Outline(card.id, _job(request, card, size, start, mask), brought)

    async def preprocess(self, control: Control) -> tuple[str, Pixels]:
        """A control map of the picture's own size: its id, and the map itself."""
        _check_thresholds(control)
        (image,) = control.pictures("").values()
        brought = await self.pictures.bring({"image": image})
        found = await self.maps.of(
            brought["image"],
            lambda loaded: _control_spec(control, control.type, loaded, loaded.picture.size),
        )
        return found.map_id, await self.maps.pixels(found)

    async def _brought(
        self, request: ImageRequest | VideoRequest, card: ModelCard
    ) -> dict[str, Brought]:
        """A request's pictures by field, once nothing else is wrong with it."""
        _check(request, card)
        self._route(request)
        named = pictures_of(request)
        if not named:
            return {}
        with span("fetch", pictures=len(named)):
            return await self.pictures.bring(named)

    async def _start(
        self, request: ImageRequest | VideoRequest, card: ModelCard, brought: Mapping[str, Brought]
    ) -> tuple[tuple[int, int], Pixels | None, Mask | None]:
        """(width, height) of what is to be made; the picture that it starts from, and the mask,
        both of that size."""
        files = [brought[name] for name in ("image", "mask") if name in brought]
        if not files:
            return self._size(request, card, None), None, None
        async with self.pictures.decoded(*files) as (start, *masks):
            size = self._size(request, card, start.picture.size)
            workers, mask = self.pictures.workers, None
            if isinstance(request, ImageRequest):
                mask = await workers.run(_mask, start, masks[0] if masks else None, size)
            return size, await workers.run(resize, start.pixels, size), mask

    def _size(
        self,
        request: ImageRequest | VideoRequest,
        card: ModelCard,
        start: tuple[int, int] | None,
    ) -> tuple[int, int]:
        """(width, height) of what is to be made, within all limits; `start`: of the picture that it
        starts from."""
        size = wanted_size(request, card, start)
        check_maps(request, size, self.pictures.args)
        return size

    def _followed(
        self,
        request: ImageRequest | VideoRequest,
        size: tuple[int, int],
        brought: Mapping[str, Brought],
    ) -> Iterator[Coroutine[object, object, MapRef | Pixels]]:
        """What controls follow, to be awaited: the maps of one, then those of the next."""
        routed = {r.index: r.preprocessor for r in self._route(request) if r.field == "controls"}
        for index, (place, control) in enumerate(request.named_controls.items()):
            for param, image in control.pictures(place).items():
                if is_map_id(image):
                    yield self.maps.named(image, param)
                elif index in routed:
                    yield self._map(control, brought[param], routed[index], size)
                else:
                    yield self._ready_map(brought[param], size)

    async def _map(
        self, control: Control, brought: Brought, preprocessor: str, size: tuple[int, int]
    ) -> MapRef:
        """A control's map of a picture."""
        return await self.maps.of(
            brought, lambda loaded: _control_spec(control, preprocessor, loaded, size)
        )

    async def _ready_map(self, brought: Brought, size: tuple[int, int]) -> Pixels:
        """A picture that is a map itself."""
        async with self.pictures.decoded(brought) as (loaded,):
            return await self.pictures.workers.run(resize, loaded.pixels, size)

    def _resembled(
        self,
        request: ImageRequest | VideoRequest,
        card: ModelCard,
        size: tuple[int, int],
        brought: Mapping[str, Brought],
    ) -> Iterator[Coroutine[object, object, MapRef | Pixels | Mask]]:
        """What IP-Adapters see, to be awaited: the embeddings of the pictures of one, its mask if
        it has one, then those of the next."""
        for place, adapter in request.ip_adapters.items():
            reads = card.ip_adapters[_name(adapter, card)]
            for index, image in enumerate(adapter.images):
                param = f"{place}.image.{index}"
                yield self._embeds(image, param, reads, brought)
            if adapter.mask is not None:
                yield self._region(brought[f"{place}.mask"], size)

    async def _embeds(
        self, image: ImageInput, param: str, reads: CardIpAdapter, brought: Mapping[str, Brought]
    ) -> MapRef:
        """The embeddings of one picture, by the encoder that an IP-Adapter reads."""

        def spec(digest: str) -> MapSpec:
            return MapSpec(
                "image_encoder", digest, encoder=reads.image_encoder, hidden=reads.hidden
            )

        if is_map_id(image):
            # The map goes from its preprocessor to the encoder; its id tells what it shows.
            found = await self.maps.named(image, param)
            return await self.maps.make(spec(image), found.ref)
        return await self.maps.of(brought[param], lambda loaded: spec(loaded.digest))

    async def _region(self, brought: Brought, size: tuple[int, int]) -> Mask:
        """Where an IP-Adapter acts, in the size of the images to be made."""
        async with self.pictures.decoded(brought) as (loaded,):
            mask = await self.pictures.workers.run(lambda: resize(edit_mask(loaded.picture), size))
        return _asking(mask, brought.param, "where the adapter acts")


def _names(brought: Mapping[str, Brought]) -> dict[str, str]:
    """What answers call pictures, by field."""
    return {param: one.name for param, one in brought.items()}


def _job(
    request: ImageRequest | VideoRequest,
    card: ModelCard,
    size: tuple[int, int],
    start: Pixels | None,
    mask: Mask | None,
) -> ImageJob:
    """Its arrays in order: those of `start` and `mask` that there are, each control's maps, and of
    each IP-Adapter the embeddings and the mask."""
    places = count((start is not None) + (mask is not None))
    controls = tuple(
        ControlUse(
            control.type,
            tuple(next(places) for _ in control.pictures(place)),
            control.conditioning_scale,
            control.start,
            control.end,
        )
        for place, control in request.named_controls.items()
    )
    ip_adapters = tuple(
        IpAdapterUse(
            _name(adapter, card),
            tuple(next(places) for _ in adapter.images),
            adapter.scale,
            None if adapter.mask is None else next(places),
        )
        for adapter in request.ip_adapters.values()
    )
    image = None if start is None else 0
    if isinstance(request, VideoRequest):
        return video_job(
            request, card, size, image=image, controls=controls, ip_adapters=ip_adapters
        )
    return image_job(
        request,
        card,
        size,
        image=image,
        mask=None if mask is None else 1,
        controls=controls,
        ip_adapters=ip_adapters,
    )


def _check(request: ImageRequest | VideoRequest, card: ModelCard) -> None:
    if (request.width is None) != (request.height is None):
        raise InvalidRequest("width and height come together or not at all", "size")
    if request.image is None and request.strength is not None:
        raise InvalidRequest("strength needs an image", "strength")
    unmasked = isinstance(request, VideoRequest) or request.mask is None
    if request.image is None and not unmasked:
        raise InvalidRequest("mask needs an image", "mask")
    if request.ip_adapters and not card.ip_adapters:
        raise InvalidRequest(f"model {card.id!r} has no IP-Adapter", "ip_adapter")
    for place, adapter in request.ip_adapters.items():
        if _name(adapter, card) not in card.ip_adapters:
            raise InvalidRequest(
                f"model {card.id!r} has no IP-Adapter {adapter.name!r}; it has: "
                f"{', '.join(card.ip_adapters)}",
                f"{place}.name",
            )
    unknown = [c.type for c in request.controls if c.type not in card.controls]
    if unknown:
        known = ", ".join(sorted(card.controls)) or "none"
        raise InvalidRequest(
            f"model {card.id!r} has no control {unknown[0]!r}; it has: {known}", "controls"
        )
    for place, control in request.named_controls.items():
        _check_thresholds(control, f"{place}.")
    if isinstance(request, VideoRequest) and request.num_frames > card.limits.max_frames:
        # Here, too: a control may have a map of each frame.
        raise InvalidRequest(
            f"num_frames is {request.num_frames}; model {card.id!r} makes at most "
            f"{card.limits.max_frames}",
            "num_frames",
        )


def _name(adapter: IpAdapter, card: ModelCard) -> str:
    """Which of the model's IP-Adapters is meant: its first, where none is named."""
    return next(iter(card.ip_adapters)) if adapter.name is None else adapter.name


def _check_thresholds(control: Control, place: str = "") -> None:
    ready = control.preprocessed or all(map(is_map_id, control.pictures(place).values()))
    for name, given in (
        ("low_threshold", control.low_threshold),
        ("high_threshold", control.high_threshold),
    ):
        if given is not None and (control.type != "canny" or ready):
            raise InvalidRequest(
                f"{place}{name} has an effect only on canny maps made here", place + name
            )
    low, high = _thresholds(control)
    if low > high:
        raise InvalidRequest(
            f"{place}low_threshold {low} is above high_threshold {high}", place + "low_threshold"
        )


def _thresholds(control: Control) -> tuple[int, int]:
    """Canny's: those of the request, or else the usual ones."""
    low, high = control.low_threshold, control.high_threshold
    return (
        MapSpec.low_threshold if low is None else low,
        MapSpec.high_threshold if high is None else high,
    )


def _mask(start: Loaded, given: Loaded | None, size: tuple[int, int]) -> Mask | None:
    """The mask: a picture of its own, or else where the start picture is transparent."""
    if given is None:
        alpha = start.picture.alpha
        if alpha is None or not (alpha < HALF).any():
            return None
        return _asking(resize(edit_mask(start.picture), size), "image")
    if given.picture.size != start.picture.size:
        raise InvalidRequest(
            "mask and image must have the same size; they have "
            f"{_shown(given.picture.size)} and {_shown(start.picture.size)}",
            "mask",
        )
    return _asking(resize(edit_mask(given.picture), size), "mask")


def _asking(mask: Mask, param: str, what: str = "what is to be made anew") -> Mask:
    """A mask of the image's size. Raises `InvalidRequest` if it asks for nothing."""
    if not (mask >= HALF).any():
        raise InvalidRequest(
            f"{param} asks for nothing: {what} must be white, or transparent, and "
            "more than a line once it has the size of the image to be made",
            param,
        )
    return mask


def _control_spec(
    control: Control, preprocessor: str, loaded: Loaded, size: tuple[int, int]
) -> MapSpec:
    if preprocessor != "canny":
        return MapSpec(preprocessor, loaded.digest, *size)
    return MapSpec("canny", loaded.digest, *size, *_thresholds(control))


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
