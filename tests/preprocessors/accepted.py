"""Files that must be read, and what must come of them."""

import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessors.pixels import Pixels, Plane
from tests.preprocessors import files
from tests.preprocessors.files import HEIGHT, WIDTH, alpha, chunk, picture, png, rgb, saved


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
    return (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % (1 << depth)).astype(np.uint8)


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
