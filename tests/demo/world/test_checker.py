"""The checker on scenes of which all is known."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from demo.world.caption import Said, caption, parse
from demo.world.checker import check, see
from demo.world.renderer import render
from demo.world.scene import Scene, Solid, draw_scene

PICTURES = 400


def softened(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blurred by about a pixel, with noise: worse than the autoencoder does."""
    soft = pixels.astype(float)
    for axis in (0, 1):
        soft = (np.roll(soft, 1, axis) + 2 * soft + np.roll(soft, -1, axis)) / 4
    noisy = soft + rng.normal(0, 4, soft.shape)
    return np.asarray(np.clip(noisy, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("soft", "side"), [(False, 64), (True, 64), (True, 128)])
def test_true_scenes_are_seen_as_they_are(soft: bool, side: int) -> None:
    rng = np.random.default_rng(5)
    kept = []
    for number in range(PICTURES):
        scene = draw_scene(rng, pairs=0.35, held=number % 2 == 0)
        pixels = render(scene, number, side=side).pixels
        if soft:
            pixels = softened(pixels, rng)
        found = check(parse(caption(scene)), see(pixels))
        kept.append((found.right, found.size))
    right, size = np.mean(kept, axis=0)
    assert right >= 0.99
    assert size >= 0.99


SCENE = Scene((Solid("cube", "green", "big", "left"),), "sand")


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"shape": "ball"}, "shape"),
        ({"colour": "cyan"}, "colour"),
        ({"size": "small"}, "size"),
        ({"place": "center"}, "place"),
    ],
)
def test_what_differs_is_named(changed: dict[str, str], wrong: str) -> None:
    other = Scene((replace(SCENE.solids[0], **changed),), "sand")  # type: ignore[arg-type]
    found = check(parse(caption(SCENE)), see(render(other, 3).pixels))
    parts = ("count", "shape", "colour", "size", "place", "background")
    assert [part for part in parts if not getattr(found, part)] == [wrong]
    assert found.right == (wrong == "size")


def test_another_background_and_another_count_are_noticed() -> None:
    description = parse(caption(SCENE))
    elsewhere = check(description, see(render(replace(SCENE, background="grass"), 3).pixels))
    assert (elsewhere.background, elsewhere.colour, elsewhere.right) == (False, True, False)
    two = Scene((*SCENE.solids, Solid("ball", "red", "small", "right")), "sand")
    found = check(description, see(render(two, 3).pixels))
    assert (found.count, found.shape, found.right) == (False, False, False)


def test_what_is_left_open_is_right_in_any_case() -> None:
    text = caption(SCENE, Said(size=False, place=False, background=False))
    scene = Scene((Solid("cube", "green", "small", "right"),), "night")
    assert check(parse(text), see(render(scene, 3).pixels)).right


def test_noise_shows_no_scene() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert not check(parse(caption(SCENE)), see(noise)).right
