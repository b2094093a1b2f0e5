"""Where rays meet the solids: exact distances and normals.

Rays start at the camera; `rays` is (rays, 3), scaled so that its z is 1: a ray's parameter is
then the depth along the camera's axis. Every function returns depths (rays,), inf where the ray
misses, and normals (rays, 3), of unit length where it hits. All in float64, in world units.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from demo.world.look import SolidLook
from demo.world.scene import Shape

Array = NDArray[np.float64]
Hits = tuple[Array, Array]

CUBE_SIDE = 2**0.5  # over the half diagonal
CONE_HEIGHT = 2.2  # over the radius, as below
CYLINDER_HEIGHT = 1.9
CYLINDER_RADIUS = 0.8


def ball(origin: Array, rays: Array, look: SolidLook) -> Hits:
    """A sphere that touches the floor."""
    centre = np.array([look.x, look.lift + look.radius, look.z])
    a = (rays**2).sum(1)
    b = rays @ (origin - centre)
    c = ((origin - centre) ** 2).sum() - look.radius**2
    depth = _nearer_root(a, b, c)
    normals = (_points(origin, rays, depth) - centre) / look.radius
    return depth, normals


def cube(origin: Array, rays: Array, look: SolidLook) -> Hits:
    """A cube turned by `yaw`."""
    side = CUBE_SIDE * look.radius
    cos, sin = np.cos(look.yaw), np.sin(look.yaw)
    turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])  # world to cube
    centre = np.array([look.x, look.lift + side / 2, look.z])
    start, direction = turn @ (origin - centre), rays @ turn.T
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (-side / 2 - start) / direction, (side / 2 - start) / direction
    enter, leave = np.minimum(first, second), np.maximum(first, second)
    axis = enter.argmax(1)
    depth = enter.max(1)
    depth = np.where((depth < leave.min(1)) & (depth > 0), depth, np.inf)
    normals = np.zeros_like(rays)
    index = np.arange(len(rays))
    normals[index, axis] = -np.sign(direction[index, axis])
    return depth, normals @ turn


def cone(origin: Array, rays: Array, look: SolidLook) -> Hits:
    """A cone on its foot. Its underside shows only when it is lifted above the camera: never."""
    height = CONE_HEIGHT * look.radius
    slope = look.radius / height
    apex = np.array([look.x, look.lift + height, look.z])
    start = origin - apex
    scale = np.array([1.0, -(slope**2), 1.0])
    a = (scale * rays**2).sum(1)
    b = rays @ (scale * start)
    c = (scale * start**2).sum()
    depth = np.full(len(rays), np.inf)
    root = np.sqrt(np.maximum(b**2 - a * c, 0))
    for sign in (-1.0, 1.0):
        with np.errstate(divide="ignore", invalid="ignore"):
            candidate = (-b + sign * root) / a
        y = start[1] + candidate * rays[:, 1]
        good = (b**2 >= a * c) & (candidate > 0) & (y <= 0) & (y >= -height)
        depth = np.where(good & (candidate < depth), candidate, depth)
    normals = (_points(origin, rays, depth) - apex) * scale
    return depth, _unit(normals)


def cylinder(origin: Array, rays: Array, look: SolidLook) -> Hits:
    """An upright cylinder with its top face."""
    height, radius = CYLINDER_HEIGHT * look.radius, CYLINDER_RADIUS * look.radius
    foot = np.array([look.x, look.lift, look.z])
    start = origin - foot
    flat = np.array([1.0, 0.0, 1.0])
    a = (flat * rays**2).sum(1)
    b = rays @ (flat * start)
    c = (flat * start**2).sum() - radius**2
    depth = _nearer_root(a, b, c)
    y = start[1] + np.where(np.isfinite(depth), depth, 0) * rays[:, 1]
    depth = np.where((y >= 0) & (y <= height), depth, np.inf)
    normals = _unit((_points(origin, rays, depth) - foot) * flat)
    with np.errstate(divide="ignore", invalid="ignore"):
        top = (height - start[1]) / rays[:, 1]
    across = start[[0, 2]] + np.where(np.isfinite(top), top, 0)[:, None] * rays[:, [0, 2]]
    on_top = (top > 0) & (top < depth) & ((across**2).sum(1) <= radius**2)
    normals[on_top] = (0.0, 1.0, 0.0)
    return np.where(on_top, top, depth), normals


SOLIDS: dict[Shape, Callable[[Array, Array, SolidLook], Hits]] = {
    "ball": ball,
    "cube": cube,
    "cone": cone,
    "cylinder": cylinder,
}


def _nearer_root(a: Array, b: Array, c: float) -> Array:
    """The smaller solution of a t^2 + 2 b t + c = 0 where it is positive, else inf."""
    discriminant = b**2 - a * c
    root = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    return np.where((discriminant >= 0) & (root > 0), root, np.inf)


def _points(origin: Array, rays: Array, depth: Array) -> Array:
    return origin + np.where(np.isfinite(depth), depth, 0.0)[:, None] * rays


def _unit(vectors: Array) -> Array:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12))
