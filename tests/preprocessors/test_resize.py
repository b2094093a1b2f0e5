"""Resizing, held to diffusers' image processor."""

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from preprocessors.pixels import Pixels
from preprocessors.resize import resize


@pytest.mark.parametrize("size", [(64, 64), (8, 200), (1, 1), (96, 72)])
def test_it_is_diffusers_resize(pictures: list[Pixels], size: tuple[int, int]) -> None:
    for picture in pictures:
        expected = VaeImageProcessor().resize(Image.fromarray(picture), size[1], size[0])
        resized = resize(picture, size)
        assert resized.dtype == np.uint8
        np.testing.assert_array_equal(resized, np.array(expected))


def test_masks_too(pictures: list[Pixels]) -> None:
    mask = pictures[0][..., 2]
    expected = Image.fromarray(mask).resize((32, 40), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(resize(mask, (32, 40)), np.array(expected))


def test_an_image_of_that_size_is_left_alone(pictures: list[Pixels]) -> None:
    assert resize(pictures[0], (96, 72)) is pictures[0]
