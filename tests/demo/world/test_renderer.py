"""Pictures and their exact depth."""

from dataclasses import replace

import numpy as np
import pytest

from demo.world.look import PLACE_X, plain_look
from demo.world.renderer import (
    CAMERA,
    CAMERA_HEIGHT,
    HORIZON,
    SIDE,
    depth_map,
    draw,
    render,
    render_frames,
    silhouette,
)
from demo.world.scene import COLOURS, SHAPES, Place, Scene, Shape, Solid
from demo.world.shapes import SOLIDS
from demo.world.style import STYLES, draw_in_style


def one(shape: Shape = "ball", place: Place = "center") -> Scene:
    return Scene((Solid(shape, "red", "big", place),), "sand")


def test_a_seed_fixes_the_picture() -> None:
    first, second, other = render(one(), 1), render(one(), 1), render(one(), 2)
    assert first.pixels.tobytes() == second.pixels.tobytes() != other.pixels.tobytes()
    assert first.depth.tobytes() == second.depth.tobytes()
    assert first.pixels.shape == (SIDE, SIDE, 3)
    assert first.pixels.dtype == np.uint8
    assert first.depth.dtype == np.float32


def test_floor_and_sky_have_their_depth() -> None:
    scene = one(place="left")
    depth = depth_map(scene, plain_look(scene))
    y = (np.arange(SIDE) + 0.5) / SIDE
    assert np.isinf(depth[y < HORIZON]).all()
    floor = CAMERA_HEIGHT / (y[y > HORIZON] - HORIZON)
    assert depth[y > HORIZON, -1] == pytest.approx(floor, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_hit_lies_on_the_solid(shape: Shape) -> None:
    look = plain_look(one(shape)).solids[0]
    x, y = np.meshgrid(np.linspace(-0.25, 0.25, 60), np.linspace(-0.5, 0.2, 60))
    rays = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
    depth, normals = SOLIDS[shape](CAMERA, rays, look)
    hit = np.isfinite(depth)
    assert hit.sum() > 100
    points = CAMERA + depth[hit, None] * rays[hit] - np.array([look.x, look.lift, look.z])
    assert np.linalg.norm(normals[hit], axis=1) == pytest.approx(1)
    assert ((normals[hit] * rays[hit]).sum(1) < 1e-9).all()  # faces the camera
    across, height, radius = np.hypot(points[:, 0], points[:, 2]), points[:, 1], look.radius
    if shape == "ball":
        distance = np.linalg.norm(points - np.array([0, radius, 0]), axis=1) - radius
    elif shape == "cube":
        side = radius * 2**0.5
        cos, sin = np.cos(look.yaw), np.sin(look.yaw)
        turned = np.stack(
            [
                cos * points[:, 0] - sin * points[:, 2],
                height - side / 2,
                sin * points[:, 0] + cos * points[:, 2],
            ]
        )
        distance = np.abs(turned).max(0) - side / 2
    elif shape == "cone":
        distance = across - radius * (1 - height / (2.2 * radius))
    else:
        top, wall = np.abs(height - 1.9 * radius), np.abs(across - 0.8 * radius)
        distance = np.minimum(top, wall)
    assert distance == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_part_of_the_picture_that_is_searched_holds_all_of_a_solid(shape: Shape) -> None:
    for x in (*PLACE_X.values(), -4.0, 4.0):
        for lift in (0.0, 1.6):
            look = replace(plain_look(one(shape)).solids[0], x=x, lift=lift)
            middle = (np.arange(SIDE) + 0.5) / SIDE
            y, across = np.meshgrid(HORIZON - middle, middle - 0.5, indexing="ij")
            rays = np.stack([across, y, np.ones_like(y)], -1).reshape(-1, 3)
            everywhere = np.isfinite(SOLIDS[shape](CAMERA, rays, look)[0]).reshape(SIDE, SIDE)
            assert (silhouette(shape, look) == everywhere).all()


def test_solids_are_large_and_where_they_should_be() -> None:
    for shape in SHAPES:
        for place, x in PLACE_X.items():
            scene = one(shape, place)
            mask = silhouette(shape, plain_look(scene).solids[0])
            assert mask.sum() > 250
            columns = np.flatnonzero(mask.any(0))
            assert columns.mean() / SIDE - 0.5 == pytest.approx(x / 8, abs=0.04)


def test_colours_tell_solids_apart() -> None:
    pictures = []
    for colour in COLOURS:
        scene = Scene((Solid("ball", colour, "big", "center"),), "snow")
        look = plain_look(scene)
        mask = silhouette("ball", look.solids[0])
        pictures.append(draw(scene, look).pixels[mask].mean(0))
    for number, first in enumerate(pictures):
        for second in pictures[:number]:
            assert np.abs(first - second).max() > 60


def test_motions_move() -> None:
    def middle(frame: int, axis: int, motion: str) -> float:
        scene = replace(one(), motion=motion)  # type: ignore[arg-type]
        depth = render_frames(scene, 5, 9)[frame].depth
        ball = depth < 8.5  # nothing else stands before it at its height
        ball[45:] = False
        return float(np.flatnonzero(ball.any(axis)).mean())

    assert middle(8, 0, "rolling right") > middle(0, 0, "rolling right") + 10
    assert middle(8, 0, "rolling left") < middle(0, 0, "rolling left") - 10
    assert middle(4, 1, "jumping") < middle(0, 1, "jumping") - 5


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_another_picture_of_the_same_scene(style: str) -> None:
    scene = one("cube")
    look = plain_look(scene)
    styled = draw_in_style(scene, look, style)  # type: ignore[arg-type]
    assert styled.shape == (SIDE, SIDE, 3)
    assert np.abs(styled.astype(int) - draw(scene, look).pixels).mean() > 10
