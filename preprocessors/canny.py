"""Canny edge maps, the control images of canny ControlNets. No torch."""

import cv2
import numpy as np

from preprocessors.pixels import Pixels

MAX_THRESHOLD = 255


def canny(image: Pixels, low_threshold: int = 100, high_threshold: int = 200) -> Pixels:
    """Edges of an image: white on black, as in diffusers' ControlNet guide.

    Args:
        image: (height, width, 3) uint8, already of the size of the image to be made (see
            `preprocessors.resize`); may be read-only.
        low_threshold: 0-255; a gradient below it is no edge.
        high_threshold: 0-255, not below `low_threshold`; a gradient above it is an edge, one
            between the two is an edge where it touches one.

    Returns (height, width, 3) uint8 of 0 and 255, three equal channels.

    Raises `ValueError` naming the threshold that is out of range.
    """
    for name, value in (("low_threshold", low_threshold), ("high_threshold", high_threshold)):
        if not 0 <= value <= MAX_THRESHOLD:
            raise ValueError(f"{name} must be 0 to {MAX_THRESHOLD}; it is {value}")
    if low_threshold > high_threshold:
        raise ValueError(
            f"low_threshold must not be above high_threshold; they are {low_threshold} "
            f"and {high_threshold}"
        )
    edges = cv2.Canny(np.ascontiguousarray(image), low_threshold, high_threshold)
    return np.repeat(edges[:, :, None], 3, axis=2).astype(np.uint8, copy=False)
