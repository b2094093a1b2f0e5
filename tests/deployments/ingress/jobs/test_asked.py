"""What is kept of the request that a job was made of."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from deployments.contracts.jobs import Control, ImageInput, ImageRequest, IpAdapter, VideoRequest
from deployments.ingress.jobs.asked import (
    Asked,
    ImageAsked,
    VideoAsked,
    digest_of,
    file_of,
    with_pictures,
)
from deployments.ingress.jobs.cards import request_of
from deployments.ingress.request.budget import pictures_of

FILE = b"a file" * 1000
URL = "data:image/png;base64," + "A" * 6000
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
KINDS = [FILE, URL, PIXELS]


def asked(image: ImageInput, several: bool, video: bool, mask: ImageInput | None = None) -> Asked:
    seen = IpAdapter((image, image), mask=image)
    resembled = (seen, seen) if several else seen
    if video:
        controls = (Control("canny", (image, image)), Control("depth", image))
        return VideoAsked(
            request=VideoRequest(
                "a", num_frames=2, image=image, controls=controls, ip_adapter=resembled
            )
        )
    return ImageAsked(
        request=ImageRequest(
            "a",
            image=image,
            mask=mask,
            controls=(Control("depth", image), Control("canny", "map-canny-0")),
            ip_adapter=resembled,
        )
    )


@pytest.mark.parametrize(
    ("of_a_job", "said"),
    [
        (ImageAsked(request=ImageRequest("a", n=2)), {"prompt": "a", "n": 2}),
        (VideoAsked(request=VideoRequest("a", fps=4)), {"prompt": "a", "fps": 4}),
    ],
)
def test_a_record_does_not_name_what_was_left_out(of_a_job: Asked, said: dict[str, object]) -> None:
    """Else an earlier release fails it for a field that it does not know."""
    assert request_of(of_a_job, {}) == {"asked": {"request": said}, "pictures": {}}


@pytest.mark.parametrize("image", KINDS)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("video", [False, True])
def test_pictures_are_taken_out_and_put_back(image: ImageInput, several: bool, video: bool) -> None:
    """Through JSON, in which no picture is left: they may be 40 MiB."""
    whole = asked(image, several, video, mask=None if video else image)
    pictures = pictures_of(whole.request)
    named = {param: f"picture-{place}" for place, param in enumerate(pictures)}
    kept = whole.model_copy(update={"request": with_pictures(whole.request, named)})
    text = json.dumps(request_of(kept, {}))
    assert len(text) < 5000
    again = type(whole).model_validate(json.loads(text)["asked"])
    assert again == kept
    back = with_pictures(again.request, pictures)
    assert repr(back) == repr(whole.request)
    assert pictures_of(back).keys() == pictures.keys()


@pytest.mark.parametrize("image", KINDS)
@pytest.mark.parametrize("video", [False, True])
def test_a_digest_tells_requests_apart(image: ImageInput, video: bool) -> None:
    digest = digest_of(asked(image, False, video))
    same = image.copy() if isinstance(image, np.ndarray) else image
    assert digest_of(asked(same, False, video)) == digest
    other = image[::-1] if isinstance(image, np.ndarray) else image[:-1]
    assert digest_of(asked(other, False, video)) != digest
    assert digest_of(asked(image, True, video)) != digest
    whole = asked(image, False, video)
    assert digest_of(whole.model_copy(update={"metadata": False})) != digest


def test_pixels_come_back_as_they_are() -> None:
    for channels in (3, 4):
        pixels = np.random.default_rng(1).integers(0, 256, (9, 5, channels), np.uint8)
        file = file_of(pixels)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), pixels)
    assert file_of(FILE) is FILE
