"""Videos of resting scenes, seen by a moving camera."""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from demo.world.look import Look
from demo.world.renderer import HORIZON, SIDE, draw
from demo.world.scene import Scene

CameraMotion = Literal["zoom-in", "pan-left"]
CAMERA_MOTIONS: tuple[CameraMotion, ...] = get_args(CameraMotion)

ZOOM = 1.4  # times as large as in the first frame is what the last one shows
PAN = 2.0  # world units that the camera goes to the left


def filmed(
    camera: CameraMotion, scene: Scene, look: Look, frames: int, strength: float
) -> NDArray[np.uint8]:
    """(frames, 64, 64, 3): the whole motion in 2 or more frames.

    A zoom goes toward the middle of the horizon, which stays where it is in all pictures of this
    world; a pan is half way at `look`.

    Args:
        strength: a pan goes so many times as far; a zoom is this power of the usual one.
    """
    phases = (strength * np.linspace(0, 1, frames)).tolist()
    if camera == "zoom-in":
        large = draw(scene, look, side=2 * SIDE).pixels
        return np.stack([_nearer(large, ZOOM**phase) for phase in phases])
    aside = [PAN * (phase - strength / 2) for phase in phases]
    looks = [
        replace(look, solids=tuple(replace(solid, x=solid.x + x) for solid in look.solids))
        for x in aside
    ]
    return np.stack([draw(scene, one).pixels for one in looks])


def _nearer(pixels: NDArray[np.uint8], times: float) -> NDArray[np.uint8]:
    """What is around the middle of a picture's horizon, so many times as large, at 64 x 64."""
    middle = (np.arange(SIDE) + 0.5) / SIDE
    (above, below), (left, right) = (
        _beside(len(pixels) * (centre + (middle - centre) / times), len(pixels))
        for centre in (HORIZON, 0.5)
    )
    total = sum(pixels[y][:, x].astype(int) for y in (above, below) for x in (left, right))
    return (np.asarray(total) // 4).astype(np.uint8)


def _beside(at: NDArray[np.float64], side: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The two pixels beside each place along a side of so many."""
    low, high = np.floor(at - 0.5).astype(int), np.floor(at + 0.5).astype(int)
    return low.clip(0), high.clip(max=side - 1)
