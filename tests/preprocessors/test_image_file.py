"""Files of strangers: every kind that is accepted, every defect that is not."""

import pickle
import re
import struct
import time
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from preprocessors.image_file import ALLOWED, ImageError, Picture, edit_mask, read_image
from preprocessors.pixels import Pixels, Plane
from tests.preprocessors import files
from tests.preprocessors.files import HEIGHT, WIDTH, alpha, chunk, picture, png, rgb, saved

MAX_PIXELS = 10_000
MAX_BYTES = 1_000_000


def read(data: bytes) -> Picture:
    return read_image(data, max_pixels=MAX_PIXELS, max_bytes=MAX_BYTES)


def load_image(data: bytes) -> Pixels:
    """What `diffusers.utils.load_image` makes of a file."""
    return np.array(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB"))


def grey() -> Plane:
    luminance: Plane = np.array(picture().convert("L"))
    return luminance


def three(plane: Plane) -> Pixels:
    pixels: Pixels = np.stack([plane] * 3, axis=-1)
    return pixels


def with_alpha(mode: str = "RGBA") -> Image.Image:
    image = picture()
    image.putalpha(Image.fromarray(alpha()))
    return image.convert(mode)


def palette() -> tuple[Plane, bytes, Pixels]:
    """Indices below 16, a PLTE chunk, and the colours that they stand for."""
    indices = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 16).astype(np.uint8)
    colours = np.random.default_rng(0).integers(0, 256, (16, 3), np.uint8)
    shown: Pixels = colours[indices]
    return indices, chunk(b"PLTE", colours.tobytes()), shown


def steps(depth: int) -> Plane:
    """All grey values of a depth."""
    return (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 2**depth).astype(np.uint8)


def keyed(equal: NDArray[np.bool_]) -> Plane:
    return np.where(equal, 0, 255).astype(np.uint8)


WIDE = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 4), np.uint16)
INDICES, PLTE, COLOURS = palette()

# name, file, colours, alpha, levels that a lossy format may be off
ACCEPTED: list[tuple[str, bytes, Pixels, Plane | None, int]] = [
    ("png rgb", saved(picture(), "PNG"), rgb(), None, 0),
    ("png rgba", saved(with_alpha(), "PNG"), rgb(), alpha(), 0),
    ("png grey", saved(picture().convert("L"), "PNG"), three(grey()), None, 0),
    ("png grey alpha", saved(with_alpha("LA"), "PNG"), three(grey()), alpha(), 0),
    ("png interlaced", files.interlaced(rgb()), rgb(), None, 0),
    ("png 1 bit", png(steps(1), 1, files.GREY), three(steps(1) * 255), None, 0),
    ("png 2 bits", png(steps(2), 2, files.GREY), three(steps(2) * 85), None, 0),
    ("png 4 bits", png(steps(4), 4, files.GREY), three(steps(4) * 17), None, 0),
    (
        "png 1 bit keyed",
        png(steps(1), 1, files.GREY, chunk(b"tRNS", struct.pack(">H", 1))),
        three(steps(1) * 255),
        keyed(steps(1) == 1),
        0,
    ),
    (
        "png 2 bits keyed",
        png(steps(2), 2, files.GREY, chunk(b"tRNS", struct.pack(">H", 2))),
        three(steps(2) * 85),
        keyed(steps(2) == 2),
        0,
    ),
    (
        "png 4 bits keyed",
        png(steps(4), 4, files.GREY, chunk(b"tRNS", struct.pack(">H", 9))),
        three(steps(4) * 17),
        keyed(steps(4) == 9),
        0,
    ),
    (
        "png 8 bits keyed",
        png(grey(), 8, files.GREY, chunk(b"tRNS", struct.pack(">H", grey()[3, 4]))),
        three(grey()),
        keyed(grey() == grey()[3, 4]),
        0,
    ),
    (
        "png rgb keyed",
        png(rgb(), 8, files.TRUECOLOUR, chunk(b"tRNS", struct.pack(">HHH", *rgb()[3, 4]))),
        rgb(),
        keyed((rgb() == rgb()[3, 4]).all(axis=2)),
        0,
    ),
    (
        "png rgb keyed with a colour that is not there",
        png(rgb(), 8, files.TRUECOLOUR, chunk(b"tRNS", struct.pack(">HHH", 300, 300, 300))),
        rgb(),
        np.full((HEIGHT, WIDTH), 255, np.uint8),
        0,
    ),
    (
        "png 16 bits grey",
        png(WIDE[..., 0], 16, files.GREY),
        three((WIDE[..., 0] / 257).round().astype(np.uint8)),
        None,
        1,
    ),
    (
        "png 16 bits grey keyed",
        png(WIDE[..., 0], 16, files.GREY, chunk(b"tRNS", struct.pack(">H", WIDE[3, 4, 0]))),
        three((WIDE[..., 0] / 257).round().astype(np.uint8)),
        keyed(WIDE[..., 0] == WIDE[3, 4, 0]),
        1,
    ),
    (
        "png 16 bits rgb",
        png(WIDE[..., :3], 16, files.TRUECOLOUR),
        (WIDE[..., :3] / 257).round().astype(np.uint8),
        None,
        1,
    ),
    (
        "png 16 bits rgb keyed",
        png(
            WIDE[..., :3],
            16,
            files.TRUECOLOUR,
            chunk(b"tRNS", WIDE[3, 4, :3].astype(">u2").tobytes()),
        ),
        (WIDE[..., :3] / 257).round().astype(np.uint8),
        keyed((WIDE[..., :3] == WIDE[3, 4, :3]).all(axis=2)),
        1,
    ),
    (
        "png 16 bits rgba",
        png(WIDE, 16, files.TRUECOLOUR_ALPHA),
        (WIDE[..., :3] / 257).round().astype(np.uint8),
        (WIDE[..., 3] / 257).round().astype(np.uint8),
        1,
    ),
    (
        "png 16 bits grey alpha",
        png(WIDE[..., :2], 16, files.GREY_ALPHA),
        three((WIDE[..., 0] / 257).round().astype(np.uint8)),
        (WIDE[..., 1] / 257).round().astype(np.uint8),
        1,
    ),
    (
        "png 16 bits that were 8 come back as they were",
        png(rgb().astype(np.uint16) * 257, 16, files.TRUECOLOUR),
        rgb(),
        None,
        0,
    ),
    ("png palette", png(INDICES, 4, files.PALETTE, PLTE), COLOURS, None, 0),
    (
        "png palette, one colour transparent",
        png(INDICES, 8, files.PALETTE, PLTE, chunk(b"tRNS", b"\xff\xff\x00")),
        COLOURS,
        keyed(INDICES == 2),
        0,
    ),
    (
        "png palette, graded transparency",
        png(INDICES, 4, files.PALETTE, PLTE, chunk(b"tRNS", bytes(range(0, 160, 10)))),
        COLOURS,
        INDICES * 10,
        0,
    ),
    ("png one pixel", saved(picture().crop((0, 0, 1, 1)), "PNG"), rgb()[:1, :1], None, 0),
    (
        "png of one frame with a control chunk",
        saved(picture(), "PNG", save_all=True),
        rgb(),
        None,
        0,
    ),
    (
        "png with a profile that is sRGB",
        saved(picture(), "PNG", icc_profile=files.srgb_profile()),
        rgb(),
        None,
        0,
    ),
    (
        "png with a profile of other primaries",
        saved(picture(), "PNG", icc_profile=files.swapped_profile()),
        rgb()[..., [1, 0, 2]],
        None,
        2,
    ),
    (
        "png rgba with a profile of other primaries",
        saved(with_alpha(), "PNG", icc_profile=files.swapped_profile()),
        rgb()[..., [1, 0, 2]],
        alpha(),
        2,
    ),
    (
        "png with a profile that is damaged",
        saved(picture(), "PNG", icc_profile=b"profile?" * 40),
        rgb(),
        None,
        0,
    ),
    (
        "png grey with a profile for colours",
        saved(picture().convert("L"), "PNG", icc_profile=files.swapped_profile()),
        three(grey()),
        None,
        0,
    ),
    ("jpeg", saved(picture(), "JPEG", quality=95), rgb(), None, 12),
    ("jpeg progressive", saved(picture(), "JPEG", quality=95, progressive=True), rgb(), None, 12),
    ("jpeg grey", saved(picture().convert("L"), "JPEG", quality=95), three(grey()), None, 4),
    ("jpeg cmyk", saved(picture().convert("CMYK"), "JPEG", quality=95), rgb(), None, 12),
    (
        "jpeg with a profile of other primaries",
        saved(picture(), "JPEG", quality=95, icc_profile=files.swapped_profile()),
        rgb()[..., [1, 0, 2]],
        None,
        14,
    ),
    (
        "jpeg of a phone: a second picture behind the first",
        saved(picture(), "MPO", quality=95, save_all=True, append_images=[picture()]),
        rgb(),
        None,
        12,
    ),
    (
        "jpeg followed by a film",
        saved(picture(), "JPEG", quality=95) + b"\xff\xda" * 999,
        rgb(),
        None,
        12,
    ),
    ("webp lossless", saved(picture(), "WEBP", lossless=True), rgb(), None, 0),
    (
        "webp lossless rgba",
        saved(with_alpha(), "WEBP", lossless=True, exact=True),
        rgb(),
        alpha(),
        0,
    ),
    ("webp lossy", saved(picture(), "WEBP", quality=95), rgb(), None, 24),
    ("webp lossy rgba", saved(with_alpha(), "WEBP", quality=95, exact=True), rgb(), alpha(), 24),
    (
        "webp with a profile of other primaries",
        saved(picture(), "WEBP", lossless=True, icc_profile=files.swapped_profile()),
        rgb()[..., [1, 0, 2]],
        None,
        2,
    ),
    (
        "gif of colours",
        saved(picture().quantize(64), "GIF"),
        np.array(picture().quantize(64).convert("RGB")),
        None,
        0,
    ),
    ("gif grey", saved(picture().convert("L"), "GIF"), three(grey()), None, 0),
    (
        "gif one colour transparent",
        saved(Image.fromarray(INDICES).convert("P"), "GIF", transparency=5),
        three(INDICES),
        keyed(INDICES == 5),
        0,
    ),
]


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


def animation(kind: str) -> bytes:
    frames = [picture(), ImageOps.mirror(picture()), ImageOps.flip(picture())]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def patched(data: bytes, at: int, content: bytes) -> bytes:
    return data[:at] + content + data[at + len(content) :]


def noise(kind: str, **options: object) -> bytes:
    array = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    return saved(Image.fromarray(array), kind, **options)


def jpeg_of_size(width: int, height: int) -> bytes:
    data = saved(picture(), "JPEG")
    return patched(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def webp_extended(width: int, height: int) -> bytes:
    data = saved(with_alpha(), "WEBP", exif=files.exif(1))
    assert data[12:16] == b"VP8X"
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return patched(data, 24, sizes)


def empty_png(width: int, height: int) -> bytes:
    pixels = chunk(b"IDAT", zlib.compress(b""))
    return files.PNG_SIGNATURE + files.header(width, height, 8, files.GREY) + pixels


_SCREEN = struct.pack("<HH", 65535, 65535)
_SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'

# name, file, what the message must say
REFUSED: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "is empty"),
    ("too many bytes", saved(picture(), "PNG") + bytes(MAX_BYTES), "at most 1000000 are allowed"),
    ("a page of text", b"hello, world", f"is of an unknown format; {ALLOWED}"),
    ("zeros", bytes(100), f"is of an unknown format; {ALLOWED}"),
    ("bmp", saved(picture(), "BMP"), f"is a BMP; {ALLOWED}"),
    ("tiff", saved(picture(), "TIFF"), f"is a TIFF; {ALLOWED}"),
    ("tiff, big-endian", saved(Image.new("I;16B", (9, 9)), "TIFF"), f"is a TIFF; {ALLOWED}"),
    ("pdf", saved(picture(), "PDF"), f"is a PDF; {ALLOWED}"),
    ("svg", _SVG, f"is an SVG; {ALLOWED}"),
    ("avif", saved(picture(), "AVIF"), f"is an AVIF, HEIC or video file; {ALLOWED}"),
    ("ico", saved(picture(), "ICO"), f"is of an unknown format; {ALLOWED}"),
    ("jpeg 2000", saved(picture(), "JPEG2000"), f"is of an unknown format; {ALLOWED}"),
    ("ppm", saved(picture(), "PPM"), f"is of an unknown format; {ALLOWED}"),
    ("wav", b"RIFF\x24\0\0\0WAVEfmt ", f"is of an unknown format; {ALLOWED}"),
    ("gif of three frames", animation("GIF"), f"GIF image is animated; {ALLOWED}"),
    ("apng of three frames", animation("PNG"), f"PNG image is animated; {ALLOWED}"),
    ("webp of three frames", animation("WEBP"), f"WebP image is animated; {ALLOWED}"),
    ("png signature alone", files.PNG_SIGNATURE, "truncated or corrupt"),
    ("jpeg signature alone", b"\xff\xd8\xff", "truncated or corrupt"),
    ("webp signature alone", b"RIFF\x04\0\0\0WEBP", "truncated or corrupt"),
    ("gif signature alone", b"GIF89a", "truncated or corrupt"),
    ("png truncated", cut(noise("PNG"), 0.6), "PNG image is truncated or corrupt"),
    ("jpeg truncated", cut(noise("JPEG"), 0.6), "JPEG image is truncated or corrupt"),
    ("webp truncated", cut(noise("WEBP"), 0.6), "WebP image is truncated or corrupt"),
    ("gif truncated", cut(noise("GIF"), 0.6), "GIF image is truncated or corrupt"),
    ("jpeg progressive, truncated", cut(noise("JPEG", progressive=True), 0.6), "truncated"),
    (
        "png with damaged pixels",
        patched(noise("PNG"), 2000, bytes(200)),
        "PNG image is truncated or corrupt",
    ),
    (
        "png with a wrong checksum",
        patched(saved(picture(), "PNG"), 16, b"\0\0\0\x10"),
        "PNG image is truncated or corrupt",
    ),
    (
        "png of an impossible depth",
        files.PNG_SIGNATURE + files.header(9, 9, 3, files.TRUECOLOUR),
        "PNG image is truncated or corrupt",
    ),
    ("png without pixels", empty_png(9, 9), "PNG image is truncated or corrupt"),
    (
        "png whose profile unpacks without end",
        png(rgb(), 8, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**24), 9))),
        "PNG image is truncated or corrupt",
    ),
    (
        "jpeg without pixels",
        b"\xff\xd8\xff\xe0\0\x02\xff\xd9",
        "JPEG image is truncated or corrupt",
    ),
    ("jpeg of zero height", jpeg_of_size(24, 0), "JPEG image is truncated or corrupt"),
    ("png of zero width", empty_png(0, 9), "PNG image is truncated or corrupt"),
    ("png bomb", empty_png(60000, 60000), "60000 x 60000 = 3600000000 pixels; at most 10000"),
    ("jpeg bomb", jpeg_of_size(65500, 65500), "65500 x 65500 = 4290250000 pixels; at most 10000"),
    ("webp bomb", webp_extended(16384, 16384), "16384 x 16384 = 268435456 pixels; at most 10000"),
    (
        "webp lossless bomb",
        patched(saved(picture(), "WEBP", lossless=True), 21, b"\xff\xff\xff\x0f"),
        "16384 x 16384 = 268435456 pixels; at most 10000",
    ),
    (
        "webp lossy bomb",
        patched(saved(picture(), "WEBP"), 26, b"\xff\x3f\xff\x3f"),
        "16383 x 16383 = 268402689 pixels; at most 10000",
    ),
    (
        "gif bomb",
        patched(saved(picture().convert("L"), "GIF"), 6, _SCREEN),
        "65535 x 65535 = 4294836225 pixels; at most 10000",
    ),
    ("one pixel too many", saved(Image.new("L", (101, 100)), "PNG"), "10100 pixels; at most 10000"),
    ("a thread", saved(Image.new("L", (1, 101)), "PNG"), "1 x 101 pixels; one side may be at most"),
    ("jpeg of many scans", files.many_scans(200), "scans; at most 100 are allowed"),
]


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


def test_an_opaque_alpha_channel_keeps_everything() -> None:
    white = Image.new("RGBA", (WIDTH, HEIGHT), "white")
    assert not edit_mask(read(saved(white, "PNG"))).any()


def test_without_alpha_white_means_edit() -> None:
    mask = edit_mask(read(saved(picture(), "PNG")))
    np.testing.assert_array_equal(mask, np.array(picture().convert("L")))
    grey_file = saved(picture().convert("L"), "PNG")
    np.testing.assert_array_equal(edit_mask(read(grey_file)), grey())
    black_and_white = png(steps(1), 1, files.GREY)
    np.testing.assert_array_equal(edit_mask(read(black_and_white)), steps(1) * 255)


# -- whatever the bytes: a picture or an ImageError --------------------------------------------

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
