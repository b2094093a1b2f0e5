"""Files of strangers: every kind that is accepted, every defect that is not."""

import pickle
import re
import struct
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from preprocessors.image_file import ImageError, Picture, edit_mask, read_image
from preprocessors.pixels import Pixels, Plane
from tests.preprocessors import files
from tests.preprocessors.accepted import ACCEPTED, grey, steps, with_alpha
from tests.preprocessors.files import HEIGHT, WIDTH, alpha, picture, png, saved
from tests.preprocessors.refused import MAX_BYTES, MAX_PIXELS, REFUSED


def read(data: bytes) -> Picture:
    return read_image(data, max_pixels=MAX_PIXELS, max_bytes=MAX_BYTES)


def load_image(data: bytes) -> Pixels:
    """What `diffusers.utils.load_image` makes of a file."""
    return np.array(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize(
    ("data", "colours", "opacity", "tolerance"),
    [pytest.param(*case, id=name) for name, *case in ACCEPTED],
)
def test_accepted(data: bytes, colours: Pixels, opacity: Plane | None, tolerance: int) -> None:
    image = read(data)
    assert image.rgb.dtype == np.uint8
    assert image.rgb.shape == colours.shape
    assert image.size == (colours.shape[1], colours.shape[0])
    assert np.abs(image.rgb.astype(int) - colours.astype(int)).max() <= tolerance
    if opacity is None:
        assert image.alpha is None
    else:
        assert image.alpha is not None
        assert image.alpha.dtype == np.uint8
        assert np.abs(image.alpha.astype(int) - opacity.astype(int)).max() <= min(tolerance, 1)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(data, id=name)
        for name, data, *_ in ACCEPTED
        if "profile" not in name and "16 bits grey" not in name and "keyed" not in name
    ]
    + [pytest.param(files.ycck(), id="jpeg ycck")],
)
def test_colours_are_those_of_diffusers_load_image(data: bytes) -> None:
    # Left out: profiles, which it ignores; 16-bit grey, which it clips to white.
    np.testing.assert_array_equal(read(data).rgb, load_image(data))


def test_ycck_is_told_from_cmyk() -> None:
    cmyk = read(saved(picture().convert("CMYK"), "JPEG", quality=95)).rgb
    assert np.abs(read(files.ycck()).rgb.astype(int) - cmyk.astype(int)).max() > 50


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int, order: str) -> None:
    block = files.exif(orientation, order)
    block = b"Exif\0\0" + block if kind == "JPEG" else block
    data = saved(picture(), kind, exif=block, lossless=True)  # only WebP knows `lossless`
    image = read(data)
    np.testing.assert_array_equal(image.rgb, load_image(data))
    assert image.size == ((WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH))


def test_alpha_turns_with_the_picture() -> None:
    image = read(saved(with_alpha(), "PNG", exif=files.exif(6)))
    assert image.alpha is not None
    np.testing.assert_array_equal(image.alpha, np.rot90(alpha(), -1))


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\0",
        b"XX*\0\x08\0\0\0",
        files.exif(0),
        files.exif(9),
        files.exif(6)[:20],
        b"II*\0" + struct.pack("<L", 2**32 - 1),
        b"II*\0" + struct.pack("<LH", 8, 65535) + files.exif(6)[10:22],
    ],
)
def test_unreadable_exif_leaves_the_picture_as_it_is(block: bytes) -> None:
    data = saved(picture(), "JPEG", quality=95)
    data = data[:2] + files.segment(0xE1, b"Exif\0\0" + block) + data[2:]
    assert read(data).size == (WIDTH, HEIGHT)
    assert read(saved(picture(), "WEBP", exif=block)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("data", "message"), [pytest.param(*case, id=name) for name, *case in REFUSED]
)
def test_refused(data: bytes, message: str) -> None:
    started = time.process_time()
    with pytest.raises(ImageError, match=re.escape(message)) as caught:
        read(data)
    assert time.process_time() - started < 1  # a bomb is refused by its header
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_as_many_pixels_as_allowed() -> None:
    assert read(saved(Image.new("L", (100, 100)), "PNG")).size == (100, 100)
    assert read(saved(Image.new("L", (1, 100)), "PNG")).size == (1, 100)
    assert read(files.many_scans(50)).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_pillows_global_limit_is_not_ours(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(picture(), kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)  # would warn
    assert read(data).size == (WIDTH, HEIGHT)
    assert Image.MAX_IMAGE_PIXELS == WIDTH * HEIGHT - 1


def test_pictures_own_their_arrays() -> None:
    image = read(saved(with_alpha(), "PNG"))
    assert image.alpha is not None
    for array in (image.rgb, image.alpha):
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.base is None


def test_transparent_means_edit() -> None:
    np.testing.assert_array_equal(edit_mask(read(saved(with_alpha(), "PNG"))), 255 - alpha())
    hole = with_alpha()
    hole.putalpha(255)
    ImageDraw.Draw(hole).rectangle((4, 5, 10, 12), fill=(255, 255, 255, 0))
    mask = edit_mask(read(saved(hole, "PNG")))
    assert mask.dtype == np.uint8
    assert (mask[5:13, 4:11] == 255).all()
    assert int((mask == 255).sum()) == 8 * 7
    assert set(np.unique(mask)) == {0, 255}


def test_a_mask_that_is_transparent_nowhere_is_read_by_its_brightness() -> None:
    grey = picture().convert("L")
    opaque = grey.convert("RGBA")
    nearly = np.linspace(200, 255, WIDTH * HEIGHT).astype(np.uint8).reshape(HEIGHT, WIDTH)
    opaque.putalpha(Image.fromarray(nearly))  # as exports leave it
    np.testing.assert_array_equal(edit_mask(read(saved(opaque, "PNG"))), np.array(grey))


def test_transparent_pixels_are_laid_on_white() -> None:
    alpha = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, 0)
    image = picture().convert("RGB")
    rgb = np.asarray(image).astype(float)
    image.putalpha(Image.fromarray(alpha))
    laid = read(saved(image, "PNG")).on_white()
    share = alpha[:, :, None] / 255
    assert np.abs(laid.rgb - (share * rgb + (1 - share) * 255)).max() <= 1
    assert laid.alpha is not None
    np.testing.assert_array_equal(laid.alpha, alpha)


def test_without_alpha_white_means_edit() -> None:
    mask = edit_mask(read(saved(picture(), "PNG")))
    np.testing.assert_array_equal(mask, np.array(picture().convert("L")))
    grey_file = saved(picture().convert("L"), "PNG")
    np.testing.assert_array_equal(edit_mask(read(grey_file)), grey())
    black_and_white = png(steps(1), 1, files.GREY)
    np.testing.assert_array_equal(edit_mask(read(black_and_white)), steps(1) * 255)
