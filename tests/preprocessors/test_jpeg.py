"""The segments of JPEG files, as Pillow's own reader sees them."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocessors.jpeg import read_segments
from tests.preprocessors import files
from tests.preprocessors.files import picture, saved

EXIF = b"Exif\0\0" + files.exif(6)


def pixels(data: bytes) -> list[object]:
    image = Image.open(BytesIO(data))
    return [image.mode, np.array(image).tolist()]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_bare_file_is_the_same_picture(mode: str, progressive: bool) -> None:
    image = picture().convert(mode)
    plain = saved(image, "JPEG", progressive=progressive)
    extras = {"exif": EXIF, "comment": b"made by hand", "xmp": b"<x/>", "dpi": (300, 300)}
    data = saved(image, "JPEG", progressive=progressive, **extras)
    jpeg = read_segments(data)
    assert jpeg.exif == EXIF
    assert len(plain) <= len(jpeg.bare) < len(data)
    for gone in (b"Exif", b"made by hand", b"<x/>"):
        assert gone in data
        assert gone not in jpeg.bare
    assert pixels(jpeg.bare) == pixels(data) == pixels(plain)


def test_profiles_stay() -> None:
    profile = files.swapped_profile() + bytes(100_000)  # more than one segment holds
    jpeg = read_segments(saved(picture(), "JPEG", icc_profile=profile))
    assert Image.open(BytesIO(jpeg.bare)).info["icc_profile"] == profile
    assert jpeg.exif == b""


def test_adobes_colour_transform_stays() -> None:
    assert pixels(read_segments(files.ycck()).bare) == pixels(files.ycck())


def test_scans_are_counted() -> None:
    assert read_segments(saved(picture(), "JPEG")).scans == 1
    progressive = read_segments(saved(picture(), "JPEG", progressive=True)).scans
    assert 5 <= progressive <= 12
    assert read_segments(files.many_scans(70)).scans == progressive + 70


def test_scans_in_metadata_and_behind_the_end_do_not_count() -> None:
    data = saved(picture(), "JPEG", comment=b"\xff\xda" * 50, restart_marker_blocks=1)
    assert read_segments(data + b"\xff\xda" * 50).scans == 1


def test_no_pixels() -> None:
    assert read_segments(b"\xff\xd8\xff\xe0\0\x02\xff\xd9") == (b"\xff\xd8\xff\xe0\0\x02", b"", 0)


@given(st.lists(st.one_of(st.binary(max_size=9), st.sampled_from([b"\xff", b"\xff\xda", EXIF]))))
def test_it_never_raises(parts: list[bytes]) -> None:
    data = b"\xff\xd8\xff" + b"".join(parts)
    jpeg = read_segments(data)
    assert len(jpeg.bare) <= len(data)
    assert jpeg.scans <= data.count(b"\xff\xda")
