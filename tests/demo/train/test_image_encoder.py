"""The image encoder sees pictures as the service shows them, and does not learn what never is."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor

from demo.image_encoder import PREPROCESSOR, EncoderShape
from demo.train.data import scene_and_look
from demo.train.image_encoder import SHAPE_HEADS, EncoderTask, preprocessed, ruled_out
from demo.world.renderer import draw
from demo.world.scene import PLACES, SHAPES

CPU = torch.device("cpu")
SCENES = 1500
BATCH = 8


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    drawn = [scene_and_look(number) for number in range(BATCH)]
    return np.stack([draw(scene, look).pixels for scene, look, _ in drawn])


def test_pictures_are_prepared_as_by_the_processor(pixels: NDArray[np.uint8]) -> None:
    processor = CLIPImageProcessor(**PREPROCESSOR)
    expected = processor([Image.fromarray(one) for one in pixels], return_tensors="pt")
    # The processor rounds to whole levels of 255, of which one is 0.0151 here at most.
    apart = preprocessed(pixels, CPU) - expected.pixel_values
    assert apart.abs().mean() < 0.0151


def test_what_is_ruled_out_is_what_training_never_shows() -> None:
    seen = defaultdict(set)
    for index in range(SCENES):
        scene, _, _ = scene_and_look(index)
        for solid in scene.solids:
            seen[solid.colour, scene.background].add(solid.shape)
    for index in range(40):
        scene, _, _ = scene_and_look(index)
        out = ruled_out(index)
        assert not out[:, 0].any(), "nothing at all is always an answer"
        for place, told in zip(PLACES, out, strict=True):
            there = [solid for solid in scene.solids if solid.place == place]
            shown = [seen[solid.colour, scene.background] for solid in there]
            never = [shape for shape in SHAPES if any(shape not in one for one in shown)]
            assert [shape for shape, no in zip(SHAPES, told[1:], strict=True) if no] == never


def test_a_head_is_not_asked_about_a_shape_that_is_ruled_out(pixels: NDArray[np.uint8]) -> None:
    torch.manual_seed(0)
    task = EncoderTask(EncoderShape(16, 8, 1), pixels[:1], BATCH, CPU)

    @torch.no_grad()
    def loss(place: int, answer: int) -> float:
        """While the head of a place is sure of an answer."""
        head = task.heads[SHAPE_HEADS[place]]
        assert isinstance(head, nn.Linear)
        head.bias[answer] += 50
        found = float(task.losses(torch.Generator().manual_seed(0))["loss"])
        head.bias[answer] -= 50
        return found

    place, shape = torch.nonzero(task.ruled_out[0])[0].tolist()
    true = int(task.labels[0, SHAPE_HEADS[place]])
    wrong = next(one for one in range(len(SHAPES)) if one not in (true, shape))
    assert loss(place, shape) == pytest.approx(loss(place, true), abs=0.3)
    assert loss(place, wrong) > loss(place, true) + 3
