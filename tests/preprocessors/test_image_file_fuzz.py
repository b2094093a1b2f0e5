"""Whatever the bytes: `read_image` returns a picture or raises `ImageError`, nothing else."""

import zlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessors.image_file import ImageError, edit_mask, read_image
from tests.preprocessors import files
from tests.preprocessors.accepted import ACCEPTED
from tests.preprocessors.files import chunk, picture, saved
from tests.preprocessors.refused import MAX_BYTES, MAX_PIXELS, animation

SEEDS = {name: data for name, data, *_ in ACCEPTED if len(data) < 5000 and "film" not in name}
SEEDS["three frames gif"] = animation("GIF")
SEEDS["three frames png"] = animation("PNG")
SEEDS["three frames webp"] = animation("WEBP")
SEEDS["turned jpeg"] = saved(picture(), "JPEG", exif=b"Exif\0\0" + files.exif(6))
SIGNATURES = [b"", files.PNG_SIGNATURE, b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a"]


def picture_or_error(data: bytes) -> None:
    try:
        image = read_image(data, max_pixels=MAX_PIXELS, max_bytes=MAX_BYTES)
    except ImageError:
        return
    width, height = image.size
    assert 1 <= width * height <= MAX_PIXELS
    assert image.rgb.shape == (height, width, 3)
    assert image.rgb.dtype == np.uint8
    assert image.alpha is None or image.alpha.shape == (height, width)
    assert edit_mask(image).shape == (height, width)


@given(signature=st.sampled_from(SIGNATURES), rest=st.binary(max_size=200))
def test_random_bytes(signature: bytes, rest: bytes) -> None:
    picture_or_error(signature + rest)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(SEEDS[draw(st.sampled_from(sorted(SEEDS)))])
    for _ in range(draw(st.integers(1, 5))):
        end = draw(st.sampled_from([64, len(data)]))  # headers more often than pixels
        at = draw(st.integers(8, max(8, min(end, len(data) - 1))))
        if draw(st.booleans()):
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        else:
            data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    shorter = draw(st.sampled_from([False, False, True]))
    return bytes(data[: draw(st.integers(0, len(data)))] if shorter else data)


@settings(max_examples=600)
@given(data=mutated())
def test_mutated_files(data: bytes) -> None:
    picture_or_error(data)


@settings(max_examples=300)
@given(
    sizes=st.one_of(
        st.tuples(st.integers(0, 40), st.integers(0, 40)),
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    ),
    kind=st.one_of(
        st.sampled_from(
            [(1, 0), (2, 0), (4, 0), (16, 0), (16, 2), (2, 3), (8, 3), (16, 4), (8, 6)]
        ),
        st.tuples(st.integers(0, 255), st.integers(0, 255)),
    ),
    interlace=st.integers(0, 2),
    extra=st.lists(
        st.tuples(
            st.sampled_from([b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"zTXt"]),
            st.binary(max_size=40),
        ),
        max_size=2,
    ),
    pixels=st.binary(max_size=300),
)
def test_png_headers_with_right_checksums(
    sizes: tuple[int, int],
    kind: tuple[int, int],
    interlace: int,
    extra: list[tuple[bytes, bytes]],
    pixels: bytes,
) -> None:
    parts = [chunk(name, content) for name, content in extra]
    parts.append(chunk(b"IDAT", zlib.compress(pixels + bytes(20_000))))
    start = files.PNG_SIGNATURE + files.header(*sizes, *kind, interlace)
    picture_or_error(start + b"".join(parts) + chunk(b"IEND", b""))
