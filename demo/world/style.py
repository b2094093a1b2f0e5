"""The world in three styles, drawn by rules of our own: what the style LoRAs learn.

ink: grey washes on white paper, with black contours. neon: a dark room, where only the solids'
contours glow. papercut: flat paper in the solids' colours, edged in white.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from demo.world.look import Look
from demo.world.renderer import COLOUR_RGB, FLOOR_RGB, SIDE, SKY_RGB, coarse, draw, silhouette
from demo.world.scene import Scene

Style = Literal["ink", "neon", "papercut"]
STYLES: tuple[Style, ...] = get_args(Style)

Mask = NDArray[np.bool_]
Array = NDArray[np.float64]


def draw_in_style(scene: Scene, look: Look, style: Style, *, side: int = SIDE) -> NDArray[np.uint8]:
    """The scene with this look, in this style: (side, side, 3) uint8. `side`: a multiple of 64."""
    masks = [
        silhouette(solid.shape, solid_look, side=2 * side)
        for solid, solid_look in zip(scene.solids, look.solids, strict=True)
    ]
    plain = draw(scene, look, side=2 * side).pixels / 255.0
    drawn = {"ink": _ink, "neon": _neon, "papercut": _papercut}[style](scene, plain, masks)
    pixels: NDArray[np.uint8] = np.clip(coarse(drawn, 2) * 255, 0, 255).round().astype(np.uint8)
    return pixels


def _ink(scene: Scene, plain: Array, masks: list[Mask]) -> Array:
    del scene
    grey = plain @ np.array([0.35, 0.5, 0.15])
    drawn = np.full_like(plain, 0.97)
    for mask in masks:
        drawn[mask] = (0.35 + 0.6 * grey[mask])[:, None]
        drawn[_contour(mask, 2)] = 0.03
    return drawn


def _neon(scene: Scene, plain: Array, masks: list[Mask]) -> Array:
    drawn: Array = 0.10 * plain + np.array([0.03, 0.0, 0.06])
    for solid, mask in zip(scene.solids, masks, strict=True):
        colour = np.array(COLOUR_RGB[solid.colour])
        drawn[mask] = 0.22 * colour
        drawn[_contour(mask, 3)] = 0.35 + 0.65 * colour
    return drawn


def _papercut(scene: Scene, plain: Array, masks: list[Mask]) -> Array:
    drawn = np.empty_like(plain)
    horizon = round(0.34 * len(plain))
    drawn[:horizon] = 0.5 + 0.5 * np.array(SKY_RGB[scene.background])
    drawn[horizon:] = 0.25 + 0.75 * np.array(FLOOR_RGB[scene.background])
    for solid, mask in zip(scene.solids, masks, strict=True):
        drawn[_contour(mask, 5)] = 1.0
        drawn[mask] = 0.15 + 0.85 * np.array(COLOUR_RGB[solid.colour])
    return drawn


def _contour(mask: Mask, width: int) -> Mask:
    """The pixels within about `width` / 2 of the mask's border; `width`: of 128 in a row."""
    wide, narrow = mask, mask
    for turn in range(width):
        for _ in range(len(mask) // (2 * SIDE)):
            if turn % 2 == 0:
                wide = _grown(wide)
            else:
                narrow = ~_grown(~narrow)
    return wide & ~narrow


def _grown(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    return mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
