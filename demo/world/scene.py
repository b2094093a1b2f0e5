"""What a scene of the demo's world holds: one or two solids on a floor, before a sky.

Every word is one that the demo's tokenizer knows whole (`demo/words.txt`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np

Shape = Literal["ball", "cube", "cone", "cylinder"]
Colour = Literal["red", "yellow", "green", "cyan", "blue", "purple"]
Size = Literal["big", "small"]
Place = Literal["left", "center", "right"]
Background = Literal["snow", "sand", "grass", "night"]
Motion = Literal["rolling left", "rolling right", "jumping"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SIZES: tuple[Size, ...] = get_args(Size)
PLACES: tuple[Place, ...] = get_args(Place)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
MOTIONS: tuple[Motion, ...] = get_args(Motion)


@dataclass(frozen=True)
class Solid:
    """One object."""

    shape: Shape
    colour: Colour
    size: Size
    place: Place


@dataclass(frozen=True)
class Scene:
    """One solid anywhere, or one on the left and one on the right, in this order.

    All solids of a scene share its `motion`; without one they rest.
    """

    solids: tuple[Solid, ...]
    background: Background
    motion: Motion | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a scene that the world does not have."""
        places = tuple(solid.place for solid in self.solids)
        if len(places) != 1 and places != ("left", "right"):
            raise ValueError(f"one solid, or one left and one right, not {places}")


def held_out(scene: Scene) -> bool:
    """Whether training never sees this scene.

    A sixth of the combinations of shape, colour and background is held out, each shape,
    colour and background alike; a scene is held out if one of its solids is.
    """
    background = BACKGROUNDS.index(scene.background)
    return any(
        (SHAPES.index(solid.shape) + COLOURS.index(solid.colour) + background) % 6 == 0
        for solid in scene.solids
    )


def single_scenes() -> Iterator[Scene]:
    """All resting scenes of one solid, held out or not: 576."""
    for background, *rest in product(BACKGROUNDS, SHAPES, COLOURS, SIZES, PLACES):
        shape, colour, size, place = rest
        yield Scene((Solid(shape, colour, size, place),), background)  # type: ignore[arg-type]


def draw_scene(
    rng: np.random.Generator, *, pairs: float, held: bool = False, moving: bool = False
) -> Scene:
    """Draw a scene uniformly, of two solids with probability `pairs` (0 to 1).

    It is held out if `held`, else one that training may see. It moves if `moving`.
    """
    while True:
        places: tuple[Place, ...] = ("left", "right")
        if rng.random() >= pairs:
            places = (PLACES[rng.integers(len(PLACES))],)
        solids = tuple(
            Solid(
                SHAPES[rng.integers(len(SHAPES))],
                COLOURS[rng.integers(len(COLOURS))],
                SIZES[rng.integers(len(SIZES))],
                place,
            )
            for place in places
        )
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        motion = MOTIONS[rng.integers(len(MOTIONS))] if moving else None
        scene = Scene(solids, background, motion)
        if held_out(scene) == held:
            return scene
