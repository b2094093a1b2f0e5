"""The fast part of `benchmarks.quality`: the demo's trained models, through the served API.

Fewer pictures than the real measurement, so the bars are lower than its results.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.world import holes, motion, references, styles
from benchmarks.world.drawing import bodies, draw
from demo.client import Client
from demo.service import demo_config, running
from demo.train.measure import adherence, held_out_scenes
from demo.world.camera import CameraMotion
from demo.world.style import Style

PICTURES = 40
SOME = 16


@pytest.fixture(scope="module")
def client(demo_models: object) -> Iterator[Client]:
    """Of `serve_config.yaml`, with two of its models."""
    with (
        running(demo_config(("sd15", "sd15-inpainting")), "quality-test") as service,
        Client(service.url) as client,
    ):
        yield client


def test_held_out_captions_are_followed(client: Client) -> None:
    scenes = held_out_scenes(PICTURES, pairs=0.0)
    found = adherence(scenes, draw(client, bodies(scenes)))
    assert np.mean([one.right for one in found]) >= 0.85


def test_canny_steers(client: Client) -> None:
    given = references.references(held_out_scenes(SOME, pairs=0.35))
    free, steered = (
        references.edge_agreement(
            given, references.controlled(client, "sd15", given, "canny", scale)
        )
        for scale in (0.0, 1.0)
    )
    assert steered > free + 0.2


def test_depth_steers(client: Client) -> None:
    given = references.references(held_out_scenes(SOME, pairs=0.35))
    free, steered = (
        references.depth_agreement(
            client, given, references.controlled(client, "sd15", given, "depth", scale)
        )
        for scale in (0.0, 1.0)
    )
    assert steered > free + 0.2


def test_ip_adapter_carries_colour_and_shape(client: Client) -> None:
    given = references.references(held_out_scenes(SOME, pairs=0.0))
    without, with_it = (
        references.carried(given, references.varied(client, "sd15", given, scale))
        for scale in (0.0, 1.0)
    )
    assert with_it.colour > without.colour + 0.3
    assert with_it.shape > without.shape + 0.2


@pytest.mark.parametrize(
    "style", ["ink", *(pytest.param(name, marks=pytest.mark.deep) for name in ("neon", "papercut"))]
)
def test_a_style_grows_with_its_weight(client: Client, style: Style) -> None:
    scenes = held_out_scenes(SOME, pairs=0.35)
    score = styles.StyleScores(scenes)
    scores = [
        score(styles.styled(client, "sd15", scenes, {style: weight}), style)
        for weight in (0.0, 0.5, 1.0)
    ]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 0.5


def test_only_the_hole_changes(client: Client) -> None:
    scenes = held_out_scenes(SOME, pairs=1.0)
    found = holes.filled(client, "sd15-inpainting", scenes, 64, preserve=True)
    assert found.changed_most == 0
    assert found.right >= 0.8
    assert found.seam < found.true_seam + 6


@pytest.mark.deep
def test_videos_move_as_told(client: Client) -> None:
    found = motion.obeyed(client, held_out_scenes(6, pairs=0.0))
    assert np.mean(list(found.values())) >= 0.75
    assert min(found.values()) >= 0.5


@pytest.mark.deep
@pytest.mark.parametrize(
    ("camera", "grown", "gone"), [("zoom-in", 1.15, -3.0), ("pan-left", 0.8, 5.0)]
)
def test_motion_loras_move_the_camera(
    client: Client, camera: CameraMotion, grown: float, gone: float
) -> None:
    scenes = [motion.centred(scene) for scene in held_out_scenes(6, pairs=0.0)]
    loras = [{"name": camera, "weight": 1.0}]
    made = motion.videos(client, scenes, None, motion_loras=loras)
    growth, drift, dirt = motion.camera_motion(scenes, made)
    assert growth > grown
    assert drift > gone
    assert dirt < 1.5
