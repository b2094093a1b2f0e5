"""Bringing an image to the size of a request. No torch.

The ingress and the preprocessor deployments resize *before* an algorithm that draws lines
(canny), so that its edges are one pixel wide in the image to be made.
"""

import numpy as np
from PIL import Image

from preprocessors.pixels import Pixels


def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Stretches an image to a size, as diffusers' `VaeImageProcessor.resize` does (PIL, Lanczos).

    Args:
        image: (height, width, 3) or (height, width) uint8; may be read-only.
        size: (width, height) in pixels, both at least 1; the aspect ratio is not kept.

    Returns an array of its own, or `image` itself where it has that size already.
    """
    height, width = image.shape[:2]
    if (width, height) == size:
        return image
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
