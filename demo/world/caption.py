"""Scenes in words, and words read back.

a big red ball on the left, in the snow
a small blue cube on the left and a big red cone on the right, at night
a yellow cylinder in the center rolling right, on the grass
"""

import re
from dataclasses import dataclass

from demo.world.scene import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    PLACES,
    SHAPES,
    SIZES,
    Background,
    Colour,
    Motion,
    Place,
    Scene,
    Shape,
    Size,
)

PLACE_WORDS: dict[Place, str] = {
    "left": "on the left",
    "center": "in the center",
    "right": "on the right",
}
BACKGROUND_WORDS: dict[Background, str] = {
    "snow": "in the snow",
    "sand": "on the sand",
    "grass": "on the grass",
    "night": "at night",
}
_SOLID = re.compile(
    rf"an? (?:(?P<size>{'|'.join(SIZES)}) )?(?P<colour>{'|'.join(COLOURS)}) "
    rf"(?P<shape>{'|'.join(SHAPES)})(?: (?P<place>{'|'.join(PLACE_WORDS.values())}))?"
)


@dataclass(frozen=True)
class Said:
    """Which of the attributes a caption names; shape and colour it always does."""

    size: bool = True
    place: bool = True
    background: bool = True


@dataclass(frozen=True)
class DescribedSolid:
    """What a caption says of one solid; None is left open."""

    shape: Shape
    colour: Colour
    size: Size | None
    place: Place | None


@dataclass(frozen=True)
class Description:
    """What a caption says; None is left open."""

    solids: tuple[DescribedSolid, ...]
    background: Background | None
    motion: Motion | None


EVERYTHING = Said()


def caption(scene: Scene, said: Said = EVERYTHING) -> str:
    """The scene in words."""
    solids = []
    for solid in scene.solids:
        words = ["a", solid.colour, solid.shape]
        if said.size:
            words.insert(1, solid.size)
        if said.place:
            words.append(PLACE_WORDS[solid.place])
        solids.append(" ".join(words))
    text = " and ".join(solids)
    if scene.motion is not None:
        text += f" {scene.motion}"
    if said.background:
        text += f", {BACKGROUND_WORDS[scene.background]}"
    return text


def parse(text: str) -> Description:
    """What a caption says. Raises ValueError if it is none of this world's."""
    found = list(_SOLID.finditer(text))
    if not found:
        raise ValueError(f"no solid in {text!r}")
    solids = tuple(
        DescribedSolid(
            next(shape for shape in SHAPES if shape == match["shape"]),
            next(colour for colour in COLOURS if colour == match["colour"]),
            next((size for size in SIZES if size == match["size"]), None),
            next((place for place in PLACES if PLACE_WORDS[place] == match["place"]), None),
        )
        for match in found
    )
    background = next((b for b in BACKGROUNDS if text.endswith(BACKGROUND_WORDS[b])), None)
    motion = next((motion for motion in MOTIONS if f" {motion}" in text), None)
    return Description(solids, background, motion)
