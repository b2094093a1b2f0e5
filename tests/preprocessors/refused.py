"""Files that must be refused, and what the refusal must say."""

import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from preprocessors.image_file import ALLOWED
from tests.preprocessors import files
from tests.preprocessors.accepted import with_alpha
from tests.preprocessors.files import chunk, picture, png, rgb, saved

MAX_PIXELS = 10_000
MAX_BYTES = 1_000_000


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
