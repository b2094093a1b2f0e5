"""What is kept of the request that a video was made of."""

import numpy as np
import pytest

from deployments.contracts.jobs import Control, ImageInput, IpAdapter, VideoRequest
from deployments.ingress.videos import _without_pictures

FILE = b"a file" * 1000
URL = "data:image/png;base64," + "A" * 6000


def asked(image: ImageInput, several: bool) -> VideoRequest:
    seen = IpAdapter((image, image), mask=image)
    return VideoRequest(
        "a",
        num_frames=2,
        image=image,
        controls=(Control("canny", (image, image)), Control("depth", image)),
        ip_adapter=(seen, seen) if several else seen,
    )


@pytest.mark.parametrize("image", [FILE, URL, np.zeros((64, 64, 3), np.uint8)])
@pytest.mark.parametrize("several", [False, True])
def test_no_picture_is_kept_beside_a_video(image: ImageInput, several: bool) -> None:
    """Neither of its controls nor of what it resembles: they may be 40 MiB."""
    kept = _without_pictures(asked(image, several))
    assert len(repr(kept)) < 3000
    again = image.copy() if isinstance(image, np.ndarray) else image
    assert kept == _without_pictures(asked(again, several))
    other = np.ones((64, 64, 3), np.uint8) if isinstance(image, np.ndarray) else image[:-1]
    assert kept != _without_pictures(asked(other, several))
