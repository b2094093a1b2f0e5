"""The measures of `benchmarks.world`, on pictures of which the truth is known."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.world.frechet import frechet_distance, standard_error
from benchmarks.world.motion import centred, dirt, drift, growth, seen_motion, truly_filmed
from benchmarks.world.references import Reference, carried, edge_agreement, references
from benchmarks.world.samplers import detail
from benchmarks.world.sharpness import sharpness
from benchmarks.world.styles import StyleScores
from demo.train.data import blown_up
from demo.train.measure import held_out_scenes
from demo.world.camera import ZOOM, CameraMotion
from demo.world.look import draw_look
from demo.world.renderer import draw, render_frames
from demo.world.scene import MOTIONS, Motion, Scene, Solid
from demo.world.style import STYLES, draw_in_style


@pytest.fixture(scope="module", params=[64, 128])
def given(request: pytest.FixtureRequest) -> list[Reference]:
    return references(held_out_scenes(30, pairs=0.0), request.param)


def test_edges_agree_with_themselves_and_not_with_others(given: list[Reference]) -> None:
    own = np.stack([reference.pixels for reference in given])
    assert edge_agreement(given, own) > 0.99
    assert edge_agreement(given, np.roll(own, 1, axis=0)) < 0.7


def test_references_carry_themselves(given: list[Reference]) -> None:
    own = np.stack([reference.pixels for reference in given])
    found = carried(given, own)
    assert min(found.colour, found.shape, found.place, found.background) > 0.95
    other = carried(given, np.roll(own, 1, axis=0))
    assert max(other.colour, other.shape) < 0.6


@pytest.mark.parametrize("side", [64, 128])
def test_styled_pictures_score_one_in_their_style_alone(side: int) -> None:
    scenes = held_out_scenes(30, pairs=0.35)
    score = StyleScores(scenes)
    rng = np.random.default_rng(5)
    looks = [draw_look(scene, rng) for scene in scenes]
    pairs = list(zip(scenes, looks, strict=True))
    plain = np.stack([draw(*pair, side=side).pixels for pair in pairs])
    for other in STYLES:
        assert score(plain, other) == pytest.approx(0, abs=0.1)
    for style in STYLES:
        styled = np.stack([draw_in_style(*pair, style, side=side) for pair in pairs])
        for other in STYLES:
            assert score(styled, other) == pytest.approx(float(other == style), abs=0.1)


def test_what_was_blown_up_is_half_as_sharp() -> None:
    scenes = held_out_scenes(20, pairs=0.35)
    small, large = (
        np.stack([one.pixels for one in references(scenes, side)]) for side in (64, 128)
    )
    assert sharpness(blown_up(small)) == pytest.approx(sharpness(large) / 2, rel=0.2)


@pytest.mark.parametrize("motion", [*MOTIONS, None])
def test_motion_is_seen(motion: Motion | None) -> None:
    for place in ("left", "center", "right"):
        if motion == f"rolling {place}":
            continue  # out of the picture
        scene = Scene((Solid("ball", "red", "big", place),), "snow", motion)
        frames = [Image.fromarray(picture.pixels) for picture in render_frames(scene, 3, 8)]
        assert seen_motion(frames) == motion


def test_drift_has_a_direction() -> None:
    scene = Scene((Solid("cube", "blue", "small", "left"),), "sand", "rolling right")
    frames = [Image.fromarray(picture.pixels) for picture in render_frames(scene, 3, 8)]
    assert drift(frames, "blue") == pytest.approx(16, abs=1)
    assert drift(frames[::-1], "blue") == pytest.approx(-16, abs=1)


@pytest.mark.parametrize(
    ("camera", "strength", "grown", "gone"),
    [
        ("zoom-in", 1.0, ZOOM, 0),
        ("zoom-in", 0.5, ZOOM**0.5, 0),
        ("pan-left", 1.0, 1, 16),
        ("pan-left", 0.5, 1, 8),
    ],
)
def test_a_moving_camera_is_seen(
    camera: CameraMotion, strength: float, grown: float, gone: float
) -> None:
    scenes = [centred(scene) for scene in held_out_scenes(30, pairs=0.0)]
    for scene, frames in zip(scenes, truly_filmed(scenes, camera, strength), strict=True):
        (solid,) = scene.solids
        assert growth(frames, solid.colour) == pytest.approx(grown, rel=0.1), scene
        assert drift(frames, solid.colour) == pytest.approx(gone, abs=1.5), scene
        assert dirt(frames, solid.colour) < 1, scene


def test_a_dirty_sky_is_seen() -> None:
    clean = np.full((64, 64, 3), 200, np.uint8)
    clean[:22] = (150 + np.arange(22, dtype=np.uint8))[:, None, None]  # lighter toward the horizon
    clean[10:40, 20:40] = (200, 30, 30)
    soiled = clean.copy()
    soiled[2:7, :16] -= 100
    frames = [Image.fromarray(pixels) for pixels in (clean, soiled)]
    # Nineteen rows are looked at, of which the solid hides twenty pixels in nine.
    assert dirt(frames, "red") == pytest.approx(100 * 5 * 16 / (19 * 64 - 9 * 20))
    assert dirt(frames[::-1], "red") == 0


def test_frechet_distance_of_gaussians() -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(size=(20_000, 3))
    second = rng.normal(size=(20_000, 3)) * 2 + np.array([1.0, 0.0, 0.0])
    # |1, 0, 0|^2 + 3 (1 - 2)^2
    assert frechet_distance(first, second) == pytest.approx(4, rel=0.05)
    units = np.array([1.0, 10.0, 0.1])
    assert frechet_distance(units * first, units * second) == pytest.approx(4, rel=0.05)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_the_error_of_a_distance_is_how_it_varies() -> None:
    rng = np.random.default_rng(3)
    first = rng.normal(size=(2000, 8))
    others = [rng.normal(0.3, 1.2, size=(200, 8)) for _ in range(100)]
    varies = np.std([frechet_distance(first, other) for other in others])
    told = [standard_error(first, other) for other in others]
    assert np.mean(told) == pytest.approx(varies, rel=0.2)


def test_detail_is_of_high_frequencies() -> None:
    smooth = np.repeat(np.linspace(50, 200, 64)[None, :, None], 64, 0).repeat(3, 2)[None]
    noise = np.random.default_rng(2).normal(0, 20, smooth.shape)
    noisy = (smooth + noise).clip(0, 255)
    assert detail(noisy.astype(np.uint8)) > 5 * detail(smooth.astype(np.uint8))
