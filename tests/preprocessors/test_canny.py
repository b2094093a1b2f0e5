"""Edge maps, held to OpenCV."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from preprocessors.canny import canny
from preprocessors.pixels import Pixels


def opencv(image: Pixels, low_threshold: int, high_threshold: int) -> Pixels:
    """The code of diffusers' ControlNet guide."""
    image = np.array(image)
    edges = cv2.Canny(image, low_threshold, high_threshold)
    edges = edges[:, :, None]
    return np.concatenate([edges, edges, edges], axis=2).astype(np.uint8)


@pytest.mark.parametrize("thresholds", [(100, 200), (0, 255), (50, 50), (0, 0), (255, 255)])
def test_edges_are_opencvs(pictures: list[Pixels], thresholds: tuple[int, int]) -> None:
    for picture in pictures:
        edges = canny(picture, *thresholds)
        assert edges.shape == picture.shape
        assert edges.dtype == np.uint8
        assert set(np.unique(edges)) <= {0, 255}
        np.testing.assert_array_equal(edges, opencv(picture, *thresholds))


def test_a_square_has_an_outline() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:30, 10:30] = 255
    edges = canny(image)
    np.testing.assert_array_equal(edges, opencv(image, 100, 200))
    assert edges.any()
    assert not edges[15:25, 15:25].any()
    assert not edges[:8].any()


def test_views_that_are_not_contiguous(pictures: list[Pixels]) -> None:
    mirrored = pictures[0][:, ::-1]
    np.testing.assert_array_equal(canny(mirrored), canny(mirrored.copy()))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (-1, 200, r"^low_threshold must be 0 to 255; it is -1$"),
        (256, 300, r"^low_threshold must be 0 to 255; it is 256$"),
        (100, 256, r"^high_threshold must be 0 to 255; it is 256$"),
        (0, -5, r"^high_threshold must be 0 to 255; it is -5$"),
        (201, 200, r"^low_threshold must not be above high_threshold; they are 201 and 200$"),
    ],
)
def test_thresholds_out_of_range(pictures: list[Pixels], low: int, high: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canny(pictures[0], low, high)


def test_nothing_here_imports_torch() -> None:
    program = (
        "import sys, preprocessors.canny, preprocessors.resize, preprocessors.image_file\n"
        "loaded = {'torch', 'transformers', 'diffusers', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
