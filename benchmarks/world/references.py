"""Pictures that requests bring along, and how much of them comes back: controls, IP-Adapter."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.world.drawing import Pixels, at_once, bodies, draw, looks_of, picture_of, stacked
from demo.client import Client, data_url
from demo.train.controls import disparity
from demo.world.caption import Said
from demo.world.checker import see, shrunk
from demo.world.look import Look
from demo.world.renderer import SIDE, depth_map, empty_depth
from demo.world.renderer import draw as draw_scene
from demo.world.scene import Scene
from preprocessors.canny import canny

NEAR = 1  # pixels that an edge may lie aside
UNPLACED = Said(size=False, place=False)  # so that these must come from the reference

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Reference:
    """A drawn scene."""

    scene: Scene
    look: Look
    pixels: Pixels


def references(scenes: Sequence[Scene], side: int = SIDE) -> list[Reference]:
    """A picture of each scene, of `side` pixels a side."""
    return [
        Reference(scene, look, draw_scene(scene, look, side=side).pixels)
        for scene, look in zip(scenes, looks_of(scenes), strict=True)
    ]


def controlled(
    client: Client, model: str, given: Sequence[Reference], kind: str, scale: float
) -> Pixels:
    """Pictures by captions that name no place, with a control; without it where scale is 0."""
    asked = bodies([reference.scene for reference in given], UNPLACED, model=model)
    if scale:
        for body, reference in zip(asked, given, strict=True):
            image = data_url(picture_of(reference.pixels))
            body["controls"] = [{"type": kind, "image": image, "conditioning_scale": scale}]
    return draw(client, asked)


def edge_agreement(given: Sequence[Reference], drawn: Pixels) -> float:
    """Mean F1 of the pictures' canny edges against the references', a pixel of 64 aside allowed."""
    scores = []
    for reference, pixels in zip(given, drawn, strict=True):
        wanted, found = (canny(shrunk(p))[..., 0] > 0 for p in (reference.pixels, pixels))
        recall = (wanted & _grown(found)).sum() / max(1, wanted.sum())
        precision = (found & _grown(wanted)).sum() / max(1, found.sum())
        scores.append(2 * recall * precision / max(1e-9, recall + precision))
    return float(np.mean(scores))


def depth_agreement(client: Client, given: Sequence[Reference], drawn: Pixels) -> float:
    """Mean correlation of how much nearer solids are than the floor and sky behind them.

    The references' depth is the renderer's, the pictures' what the service's own DPT says.
    """
    maps = at_once([*drawn], lambda pixels: client.preprocess("depth", picture_of(pixels)))
    empty = disparity(empty_depth()).astype(float)
    scores = []
    for reference, found in zip(given, maps, strict=True):
        wanted = disparity(depth_map(reference.scene, reference.look)) - empty
        seen = np.asarray(found.convert("L").resize((SIDE, SIDE)), float) - empty
        scores.append(np.corrcoef(wanted.ravel(), seen.ravel())[0, 1])
    return float(np.mean(scores))


@dataclass(frozen=True)
class Carried:
    """Shares of pictures, 0 to 1, whose solid has what the reference's has."""

    colour: float
    shape: float
    place: float
    background: float


def varied(client: Client, model: str, given: Sequence[Reference], scale: float) -> Pixels:
    """Pictures without a prompt that are to resemble the references, by the IP-Adapter."""
    fields = {"model": model, "scale": str(scale)}
    asked = list(enumerate(given))
    return stacked(
        at_once(
            asked,
            lambda one: client.vary({**fields, "seed": str(one[0])}, picture_of(one[1].pixels)),
        )
    )


def carried(given: Sequence[Reference], drawn: Pixels) -> Carried:
    """What the checker finds again of references with one solid."""
    pairs = [(reference.scene, see(pixels)) for reference, pixels in zip(given, drawn, strict=True)]
    alone = [(scene.solids[0], seen.solids) for scene, seen in pairs]

    def share(*found: bool) -> float:
        return float(np.mean(found))

    return Carried(
        colour=share(*(any(s.colour == solid.colour for s in seen) for solid, seen in alone)),
        shape=share(*(any(s.shape == solid.shape for s in seen) for solid, seen in alone)),
        place=share(*(any(s.place == solid.place for s in seen) for solid, seen in alone)),
        background=share(*(scene.background == seen.background for scene, seen in pairs)),
    )


def _grown(mask: Mask) -> Mask:
    padded = np.pad(mask, NEAR)
    height, width = mask.shape
    shifts = range(2 * NEAR + 1)
    parts = [padded[y : y + height, x : x + width] for y in shifts for x in shifts]
    grown: Mask = np.logical_or.reduce(parts)
    return grown
