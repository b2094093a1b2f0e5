"""Thumbnail and sprite sheet of a video."""

import io

import numpy as np
import pytest
from PIL import Image

from deployments.ingress.answer.stills import spritesheet, thumbnail


def flat(count: int, height: int, width: int) -> np.ndarray:
    """Frames of one brightness each."""
    levels = (np.arange(count) + 1) * 200 // count
    return np.broadcast_to(
        levels[:, None, None, None].astype(np.uint8), (count, height, width, 3)
    ).copy()


def test_the_thumbnail_is_the_first_frame() -> None:
    image = Image.open(io.BytesIO(thumbnail(flat(3, 48, 64))))
    assert (image.format, image.size) == ("WEBP", (64, 48))
    assert np.abs(np.asarray(image.convert("L")).astype(int) - 66).max() <= 3


@pytest.mark.parametrize(
    ("count", "height", "width", "tile", "grid"),
    [
        (1, 48, 64, (64, 48), (1, 1)),
        (8, 48, 64, (64, 48), (3, 3)),
        (16, 64, 64, (64, 64), (4, 4)),
        (2, 512, 1024, (256, 128), (2, 1)),
        (17, 16, 8, (8, 16), (5, 4)),
    ],
)
def test_the_sheet_is_a_grid_line_by_line(
    count: int, height: int, width: int, tile: tuple[int, int], grid: tuple[int, int]
) -> None:
    frames = flat(count, height, width)
    image = Image.open(io.BytesIO(spritesheet(frames)))
    assert (image.format, image.size) == ("JPEG", (grid[0] * tile[0], grid[1] * tile[1]))
    grey = np.asarray(image.convert("L")).astype(int)
    for place in range(grid[0] * grid[1]):
        line, column = divmod(place, grid[0])
        middle = grey[line * tile[1] + tile[1] // 2, column * tile[0] + tile[0] // 2]
        level = int(frames[place, 0, 0, 0]) if place < count else 0
        assert abs(middle - level) <= 6, place
