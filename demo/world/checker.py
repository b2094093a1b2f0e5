"""Says what a picture of the world shows, by what it knows of the renderer; nothing is learned.

Floor and sky have known colours and shadows only dim them, so that what is left over are the
solids. Their colour is the nearest of the palette, their shape that of the most similar crop
among those of scenes drawn for comparison.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from demo.world.caption import DescribedSolid, Description
from demo.world.look import DISTANCE, PLACE_X, RADIUS, draw_look
from demo.world.renderer import COLOUR_RGB, FLOOR_RGB, HORIZON, SIDE, SKY_RGB, coarse, draw
from demo.world.scene import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Background,
    Scene,
    Shape,
    Size,
    Solid,
)

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

THRESHOLD = 0.13  # of colour, of 1: what differs more from floor and sky is a solid
DIMMEST, BRIGHTEST = 0.4, 1.12  # of floor and sky
LEAST_AREA = 30  # pixels
LEAST_COLUMN = 3  # pixels of a solid in each of its columns
CROP = 16
EXAMPLES = 144  # of each shape


@dataclass(frozen=True)
class Sighting:
    """What a picture shows; its solids from left to right."""

    solids: tuple[Solid, ...]
    background: Background


@dataclass(frozen=True)
class Adherence:
    """Which parts of a description a picture keeps. What is left open counts as kept.

    Attributes:
        count: the number of solids; where it is wrong, so are the next four.
    """

    count: bool
    shape: bool
    colour: bool
    size: bool
    place: bool
    background: bool

    @property
    def right(self) -> bool:
        """All but the size."""
        return self.count and self.shape and self.colour and self.place and self.background


@dataclass(frozen=True)
class _Crop:
    """A solid cut out: its columns and rows, its area in pixels, and its likeness."""

    left: int
    right: int
    top: int
    bottom: int
    area: int
    rgb: Array
    likeness: Array


def see(pixels: NDArray[np.uint8]) -> Sighting:
    """What the picture (side, side, 3) uint8 shows; `side`: a multiple of 64."""
    picture = _smooth(shrunk(pixels) / 255)
    background = _background(picture)
    return Sighting(tuple(_solid(crop) for crop in _crops(picture, background)), background)


def shrunk(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (side, side, 3) averaged down to 64 pixels a side. Raises ValueError unless `side`
    is a multiple of that."""
    times, over = divmod(len(pixels), SIDE)
    if over:
        raise ValueError(f"a side of {len(pixels)} pixels is no multiple of {SIDE}")
    if times == 1:
        return pixels
    return np.asarray(coarse(pixels, times).round(), np.uint8)


def middles(pixels: NDArray[np.uint8]) -> list[tuple[float, float]]:
    """Where the solids' middles are, (column, row) in pixels of 64, from left to right."""
    picture = _smooth(shrunk(pixels) / 255)
    crops = _crops(picture, _background(picture))
    return [((crop.left + crop.right) / 2, (crop.top + crop.bottom) / 2) for crop in crops]


def check(description: Description, sighting: Sighting) -> Adherence:
    """Compare what was asked for with what is seen. Order counts where places are named."""
    count = len(description.solids) == len(sighting.solids)
    pairs = list(zip(description.solids, sighting.solids, strict=False)) if count else []
    return Adherence(
        count=count,
        shape=count and all(asked.shape == seen.shape for asked, seen in pairs),
        colour=count and all(asked.colour == seen.colour for asked, seen in pairs),
        size=count and all(asked.size in (None, seen.size) for asked, seen in pairs),
        place=count and all(_at_place(asked, seen) for asked, seen in pairs),
        background=description.background in (None, sighting.background),
    )


def _at_place(asked: DescribedSolid, seen: Solid) -> bool:
    return asked.place in (None, seen.place)


def _smooth(picture: Array) -> Array:
    """Blurred by a pixel, so that noise and an autoencoder's softness matter less."""
    for axis in (0, 1):
        wide = np.concatenate(
            [picture.take([0], axis), picture, picture.take([-1], axis)], axis=axis
        )
        picture = (
            wide.take(range(SIDE), axis)
            + 2 * wide.take(range(1, SIDE + 1), axis)
            + wide.take(range(2, SIDE + 2), axis)
        ) / 4
    return picture


def _background(picture: Array) -> Background:
    """The one that explains most of the picture."""
    return max(BACKGROUNDS, key=lambda name: float(np.mean(_leftover(picture, name) < 0.1)))


def _leftover(picture: Array, background: Background) -> Array:
    """(64, 64): how far each pixel is from floor or sky at their best brightness."""
    plain = _plain(background)
    brightness = (picture * plain).sum(-1) / (plain**2).sum(-1)
    sky = np.arange(SIDE)[:, None] < HORIZON * SIDE
    dimmest = np.where(sky, 0.85, DIMMEST)
    brightness = np.clip(brightness, dimmest, BRIGHTEST)
    return np.asarray(np.abs(picture - brightness[..., None] * plain).max(-1))


@cache
def _plain(background: Background) -> Array:
    """(64, 64, 3): floor and sky without solids."""
    y = HORIZON - (np.arange(SIDE) + 0.5) / SIDE
    sky = np.array(SKY_RGB[background]) * (1 - 0.5 * y[:, None])
    rows = np.where(y[:, None] > 0, sky, np.array(FLOOR_RGB[background]))
    return np.repeat(rows[:, None], SIDE, axis=1)


def _crops(picture: Array, background: Background) -> list[_Crop]:
    """The solids from left to right: runs of columns that hold something."""
    mask = _leftover(picture, background) > THRESHOLD
    filled = mask.sum(0) >= LEAST_COLUMN
    edges = np.flatnonzero(np.diff(np.concatenate([[False], filled, [False]]).astype(int)))
    runs = [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
    crops = [_crop(picture, mask, start, end) for start, end in runs]
    return [crop for crop in crops if crop.area >= LEAST_AREA]


def _crop(picture: Array, mask: Mask, left: int, right: int) -> _Crop:
    part = mask[:, left:right]
    rows = np.flatnonzero(part.sum(1) >= 2)
    if not len(rows):
        return _Crop(left, right, 0, 0, 0, np.zeros(3), np.zeros(2 * CROP**2 + 1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    part = part[top:bottom]
    pixels = picture[top:bottom, left:right]
    light = pixels.max(-1) * part
    brightest = max(float(np.quantile(light[part], 0.9)), 1e-3)
    shape = np.log((bottom - top) / (right - left))
    likeness = np.concatenate(
        [
            _resized(part.astype(float)).ravel(),
            0.7 * _resized(light / brightest).ravel(),
            [6.0 * shape],
        ]
    )
    return _Crop(left, right, top, bottom, int(part.sum()), pixels[part].mean(0), likeness)


def _resized(values: Array) -> Array:
    """Sampled to (CROP, CROP), linearly between the pixels."""
    for axis in (0, 1):
        length = values.shape[axis]
        at = np.clip((np.arange(CROP) + 0.5) / CROP * length - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, length - 1)
        share = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        values = (1 - share) * values.take(low, axis) + share * values.take(high, axis)
    return values


def _solid(crop: _Crop) -> Solid:
    colour = max(COLOURS, key=lambda name: _cosine(crop.rgb, np.array(COLOUR_RGB[name])))
    likenesses, labels = _examples()
    distances = np.square(likenesses - crop.likeness).sum(1)
    nearest = np.argsort(distances)[:3]
    shape = max(SHAPES, key=lambda name: sum(labels[i] == name for i in nearest))
    areas = _areas()
    size = min(SIZES, key=lambda name: abs(np.log(crop.area / areas[shape, name])))
    x = ((crop.left + crop.right) / 2 / SIDE - 0.5) * (DISTANCE - 0.3)
    place = min(PLACES, key=lambda name: abs(PLACE_X[name] - x))
    return Solid(shape, colour, size, place)


def _cosine(first: Array, second: Array) -> float:
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second) + 1e-9))


@cache
def _examples() -> tuple[Array, tuple[Shape, ...]]:
    """Likenesses of drawn solids, and their shapes."""
    rng = np.random.default_rng(11)
    likenesses, labels = [], []
    for shape in SHAPES:
        for number in range(EXAMPLES):
            colour, background = COLOURS[number % 6], BACKGROUNDS[number // 2 % 4]
            place, size = PLACES[number // 2 % 3], SIZES[number // 6 % 2]
            scene = Scene((Solid(shape, colour, size, place),), background)
            picture = _smooth(draw(scene, draw_look(scene, rng)).pixels / 255)
            picture = _smooth(picture) if number % 2 else picture
            crops = _crops(picture, background)
            likenesses.append(max(crops, key=lambda crop: crop.area).likeness)
            labels.append(shape)
    return np.stack(likenesses), tuple(labels)


@cache
def _areas() -> dict[tuple[Shape, Size], float]:
    """Pixels of each shape in each size, at the usual distance."""
    areas: dict[tuple[Shape, Size], float] = {}
    rng = np.random.default_rng(12)
    for shape in SHAPES:
        for size in RADIUS:
            scene = Scene((Solid(shape, "red", size, "center"),), "snow")
            looks = [draw_look(scene, rng) for _ in range(6)]
            pictures = [_smooth(draw(scene, look).pixels / 255) for look in looks]
            found = [max(crop.area for crop in _crops(p, "snow")) for p in pictures]
            areas[shape, size] = float(np.exp(np.mean(np.log(found))))
    return areas
