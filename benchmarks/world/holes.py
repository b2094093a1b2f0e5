"""Inpainting: what becomes of a hole, and of the picture around it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.world.drawing import Pixels, at_once, picture_of, stacked
from benchmarks.world.references import Reference, references
from demo.client import Client
from demo.train.measure import adherence
from demo.world.caption import caption
from demo.world.scene import Scene, Solid


@dataclass(frozen=True)
class Filled:
    """Of pictures of two solids whose right half was made anew.

    Attributes:
        right: share that the checker finds right, both solids and the background.
        changed: the mean change of a pixel outside the hole, of 255.
        changed_most: the largest.
        seam: mean step between neighbours across the hole's border, of 255.
        true_seam: the same in the pictures before.
    """

    right: float
    changed: float
    changed_most: int
    seam: float
    true_seam: float


def filled(
    client: Client, model: str, scenes: Sequence[Scene], side: int, *, preserve: bool
) -> Filled:
    """Ask for another solid on the right of each scene (of two solids), in the same surroundings.

    Args:
        side: of the pictures.
        preserve: whether the service puts the pixels outside the hole back as they were.
    """
    given = references(scenes, side)
    asked = [_other(scene) for scene in scenes]
    drawn = stacked(
        at_once(
            list(zip(given, asked, range(len(asked)), strict=True)),
            lambda one: client.edit(
                {
                    "model": model,
                    "prompt": caption(one[1]),
                    "seed": str(one[2]),
                    "preserve_unmasked": str(preserve).lower(),
                },
                picture_of(one[0].pixels),
                picture_of(_mask(one[0])),
            ),
        )
    )
    before = np.stack([reference.pixels for reference in given])
    outside = np.abs(drawn.astype(int) - before)[:, :, : side // 2]
    return Filled(
        right=float(np.mean([found.right for found in adherence(asked, drawn)])),
        changed=float(outside.mean()),
        changed_most=int(outside.max()),
        seam=_seam(drawn),
        true_seam=_seam(before),
    )


def _other(scene: Scene) -> Scene:
    """The scene with the right solid's colour and shape exchanged for the left one's, and it."""
    left, right = scene.solids
    return Scene((left, Solid(left.shape, left.colour, right.size, "right")), scene.background)


def _mask(reference: Reference) -> Pixels:
    """The picture, transparent where it is to be made anew."""
    side = len(reference.pixels)
    opaque = np.full((side, side, 1), 255, np.uint8)
    opaque[:, side // 2 :] = 0
    return np.concatenate([reference.pixels, opaque], axis=2)


def _seam(pixels: Pixels) -> float:
    first = pixels.shape[2] // 2
    steps = np.abs(pixels[:, :, first].astype(int) - pixels[:, :, first - 1])
    return float(steps.mean())
