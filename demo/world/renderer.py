"""Draws a scene: shaded solids, their soft shadows on the floor, the sky; and its exact depth."""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from demo.world.look import Look, SolidLook, draw_look, moved
from demo.world.scene import Background, Colour, Scene, Shape
from demo.world.shapes import SOLIDS, Array

SIDE = 64  # pixels
CAMERA_HEIGHT = 3.75
HORIZON = 0.34  # of the picture's height, from the top
SUPERSAMPLING = 2  # rays along each side of a pixel
CAMERA = np.array([0.0, CAMERA_HEIGHT, 0.0])
LIGHT = np.array([-0.45, 0.6, -0.66])
AMBIENT = 0.55

COLOUR_RGB: dict[Colour, tuple[float, float, float]] = {
    "red": (0.93, 0.10, 0.10),
    "yellow": (0.97, 0.88, 0.08),
    "green": (0.08, 0.78, 0.14),
    "cyan": (0.08, 0.85, 0.90),
    "blue": (0.12, 0.20, 0.95),
    "purple": (0.75, 0.15, 0.90),
}
FLOOR_RGB: dict[Background, tuple[float, float, float]] = {
    "snow": (0.94, 0.95, 0.97),
    "sand": (0.84, 0.70, 0.50),
    "grass": (0.40, 0.50, 0.26),
    "night": (0.20, 0.20, 0.24),
}
SKY_RGB: dict[Background, tuple[float, float, float]] = {
    "snow": (0.70, 0.74, 0.80),
    "sand": (0.58, 0.76, 0.94),
    "grass": (0.58, 0.76, 0.94),
    "night": (0.05, 0.05, 0.16),
}


class Picture(NamedTuple):
    """A drawn scene.

    Attributes:
        pixels: (side, side, 3) uint8.
        depth: (side, side) float32, along the camera's axis through each pixel's middle, in
            world units; inf in the sky.
    """

    pixels: NDArray[np.uint8]
    depth: NDArray[np.float32]


def render(scene: Scene, seed: int, *, side: int = SIDE) -> Picture:
    """Draw the scene; `seed` fixes what its words leave open."""
    return draw(scene, draw_look(scene, np.random.default_rng(seed)), side=side)


def render_frames(scene: Scene, seed: int, count: int, *, side: int = SIDE) -> list[Picture]:
    """Draw the scene's motion from its start to its end in `count` (2 or more) pictures."""
    look = draw_look(scene, np.random.default_rng(seed))
    phases = np.linspace(0, 1, count)
    return [draw(scene, moved(look, scene.motion, float(p)), side=side) for p in phases]


def draw(scene: Scene, look: Look, *, side: int = SIDE) -> Picture:
    """Draw the scene with this look."""
    fine = _shade(scene, look, side * SUPERSAMPLING)
    pixels = np.clip(coarse(fine, SUPERSAMPLING) * 255, 0, 255).round().astype(np.uint8)
    return Picture(pixels, depth_map(scene, look, side=side))


def coarse(picture: NDArray[np.generic], times: int) -> Array:
    """A square picture (side, side, 3) with blocks of `times` x `times` pixels averaged."""
    side = len(picture) // times
    averaged: Array = picture.reshape(side, times, side, times, 3).mean(axis=(1, 3))
    return averaged


def depth_map(scene: Scene, look: Look, *, side: int = SIDE) -> NDArray[np.float32]:
    """The depth of `Picture`."""
    rays = _rays(side)
    depth = _floor(rays)
    for solid, solid_look in zip(scene.solids, look.solids, strict=True):
        near = _near(solid_look, side)
        hit = SOLIDS[solid.shape](CAMERA, rays[near], solid_look)[0]
        depth[near] = np.minimum(depth[near], hit)
    return depth.reshape(side, side).astype(np.float32)


def empty_depth(*, side: int = SIDE) -> NDArray[np.float32]:
    """The depth of a scene without solids."""
    return _floor(_rays(side)).reshape(side, side).astype(np.float32)


def silhouette(shape: Shape, look: SolidLook, *, side: int = SIDE) -> NDArray[np.bool_]:
    """(side, side): where the solid's surface shows at a pixel's middle."""
    near = _near(look, side)
    shown = np.zeros(side * side, np.bool_)
    shown[near] = np.isfinite(SOLIDS[shape](CAMERA, _rays(side)[near], look)[0])
    return shown.reshape(side, side)


@cache
def _rays(side: int) -> Array:
    """One for each pixel's middle, row by row: (side * side, 3), z = 1."""
    middle = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(HORIZON - middle, middle - 0.5, indexing="ij")
    return np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)


def _near(look: SolidLook, side: int) -> NDArray[np.intp]:
    """The numbers of the rays in a rectangle that surely holds the solid."""
    reach, front = 1.1 * look.radius, look.z - look.radius
    back = look.z + look.radius
    left = min((look.x - reach) / front, (look.x - reach) / back) + 0.5
    right = max((look.x + reach) / front, (look.x + reach) / back) + 0.5
    high = look.lift + 2.3 * look.radius - CAMERA_HEIGHT
    top = HORIZON - max(high / front, high / back)
    bottom = HORIZON - (look.lift - CAMERA_HEIGHT) / front
    columns = np.arange(max(0, int(left * side)), min(side, int(right * side) + 2))
    rows = np.arange(max(0, int(top * side)), min(side, int(bottom * side) + 2))
    return (rows[:, None] * side + columns).ravel()


def _floor(rays: Array) -> Array:
    with np.errstate(divide="ignore"):
        depth = -CAMERA_HEIGHT / rays[:, 1]
    return np.where(rays[:, 1] < 0, depth, np.inf)


def _shade(scene: Scene, look: Look, side: int) -> Array:
    """(side, side, 3), mostly from 0 to 1."""
    rays = _rays(side)
    depth = _floor(rays)
    ground = np.isfinite(depth)
    colours = np.empty((len(rays), 3))
    colours[~ground] = SKY_RGB[scene.background]
    colours[~ground] *= (1.0 - 0.5 * rays[~ground, 1:2]) * look.light
    points = CAMERA + depth[ground, None] * rays[ground]
    floor = np.array(FLOOR_RGB[scene.background]) * look.light
    colours[ground] = floor * _shadows(points, look)[:, None]
    for solid, solid_look in zip(scene.solids, look.solids, strict=True):
        near = _near(solid_look, side)
        hit, normals = SOLIDS[solid.shape](CAMERA, rays[near], solid_look)
        visible = hit < depth[near]
        seen = near[visible]
        depth[seen] = hit[visible]
        lit = AMBIENT + (1 - AMBIENT) * np.maximum(normals[visible] @ LIGHT, 0)
        colour = np.array(COLOUR_RGB[solid.colour]) * solid_look.tint
        colours[seen] = colour * lit[:, None]
    return colours.reshape(side, side, 3)


def _shadows(points: Array, look: Look) -> Array:
    """Brightness (points,) of floor points, 0.45 to 1: soft shadows, away from the light."""
    brightness = np.ones(len(points))
    for solid in look.solids:
        reach = solid.radius * (1 + 0.5 * solid.lift)
        dx = points[:, 0] - (solid.x + 0.45 * solid.radius + 0.6 * solid.lift)
        dz = points[:, 2] - (solid.z + 0.35 * solid.radius)
        strength = 0.55 / (1 + solid.lift)
        brightness *= 1 - strength * np.exp(-(((dx**2 + dz**2) / (0.9 * reach) ** 2) ** 2))
    return brightness
