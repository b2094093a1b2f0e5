"""Videos of resting scenes, seen by a moving camera."""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from demo.world.look import Look
from demo.world.renderer import SIDE, draw
from demo.world.scene import Scene

CameraMotion = Literal["zoom-in", "pan-left"]
CAMERA_MOTIONS: tuple[CameraMotion, ...] = get_args(CameraMotion)

ZOOM = 0.3  # of the picture's side that a zoom leaves out in the end
PAN = 2.0  # world units that the camera goes to the left


def filmed(camera: CameraMotion, scene: Scene, look: Look, frames: int) -> NDArray[np.uint8]:
    """(frames, 64, 64, 3): the whole motion in 2 or more frames; a pan is half way at `look`."""
    phases = np.linspace(0, 1, frames).tolist()
    if camera == "zoom-in":
        large = draw(scene, look, side=2 * SIDE).pixels
        return np.stack([_middle(large, ZOOM * phase) for phase in phases])
    looks = [
        replace(look, solids=tuple(replace(s, x=s.x + PAN * (phase - 0.5)) for s in look.solids))
        for phase in phases
    ]
    return np.stack([draw(scene, one).pixels for one in looks])


def _middle(pixels: NDArray[np.uint8], left_out: float) -> NDArray[np.uint8]:
    """The middle of a picture, without this share of its side, at 64 x 64."""
    side = len(pixels)
    at = side * (0.5 + (1 - left_out) * ((np.arange(SIDE) + 0.5) / SIDE - 0.5))
    low, high = np.floor(at - 0.5).astype(int).clip(0), np.floor(at + 0.5).astype(int)
    high = high.clip(0, side - 1)
    total = sum(pixels[y][:, x].astype(int) for y in (low, high) for x in (low, high))
    return (np.asarray(total) // 4).astype(np.uint8)
