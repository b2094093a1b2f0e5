"""Where exactly the solids of a scene stand and how they look: what its words leave open."""

import math
from dataclasses import dataclass, replace

import numpy as np

from demo.world.scene import Motion, Place, Scene, Size

# World units; the camera looks along z from (0, CAMERA_HEIGHT, 0), the floor is y = 0.
PLACE_X: dict[Place, float] = {"left": -2.1, "center": 0.0, "right": 2.1}
DISTANCE = 8.0
RADIUS: dict[Size, float] = {"big": 1.5, "small": 1.06}
TRAVEL = 2.0  # of a rolling solid
HOP = 1.6  # height of a jump


@dataclass(frozen=True)
class SolidLook:
    """One solid's place and looks.

    Attributes:
        x, z: where it stands, in world units.
        lift: of its lowest point above the floor.
        radius: of the ball or the foot; the cube's half diagonal.
        yaw: the cube's turn about its vertical axis, in radians; at a quarter of pi an edge
            points to a camera straight before it.
        tint: factor of its brightness.
    """

    x: float
    z: float
    lift: float
    radius: float
    yaw: float
    tint: float


@dataclass(frozen=True)
class Look:
    """The looks of a scene's solids, in its order, and of its light.

    Attributes:
        solids: one for each solid.
        light: factor of the brightness of floor and sky.
    """

    solids: tuple[SolidLook, ...]
    light: float


def draw_look(scene: Scene, rng: np.random.Generator) -> Look:
    """Draw what the words of `scene` leave open."""
    solids = []
    for solid in scene.solids:
        x = PLACE_X[solid.place] + rng.uniform(-0.2, 0.2)
        z = DISTANCE + rng.uniform(-0.3, 0.3)
        radius = RADIUS[solid.size] * rng.uniform(0.93, 1.07)
        # The camera always sees two sides of a cube.
        yaw = math.atan2(x, z) + rng.uniform(0.5, 1.07)
        solids.append(SolidLook(x, z, 0.0, radius, yaw, rng.uniform(0.9, 1.0)))
    return Look(tuple(solids), rng.uniform(0.95, 1.03))


def plain_look(scene: Scene) -> Look:
    """The middle of what `draw_look` draws."""
    solids = tuple(
        SolidLook(PLACE_X[solid.place], DISTANCE, 0.0, RADIUS[solid.size], 0.75, 0.95)
        for solid in scene.solids
    )
    return Look(solids, 1.0)


def moved(look: Look, motion: Motion | None, phase: float) -> Look:
    """The look at `phase` of the motion, from 0 to 1; at 0 it is `look`."""
    if motion is None:
        return look
    dx, lift = 0.0, 0.0
    if motion == "jumping":
        lift = HOP * 4 * phase * (1 - phase)
    else:
        dx = TRAVEL * phase * (1 if motion == "rolling right" else -1)
    solids = tuple(replace(solid, x=solid.x + dx, lift=lift) for solid in look.solids)
    return replace(look, solids=solids)
