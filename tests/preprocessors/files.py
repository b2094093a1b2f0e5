"""Image files made by hand or by Pillow, for the decoder to chew on."""

import struct
import zlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from preprocessors.pixels import Pixels, Plane

WIDTH, HEIGHT = 24, 16
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, TRUECOLOUR, PALETTE, GREY_ALPHA, TRUECOLOUR_ALPHA = 0, 2, 3, 4, 6


def rgb() -> Pixels:
    """Smooth enough for JPEG, asymmetric in both directions."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 10, y * 15, 255 - x * 5 - y * 5], axis=-1).astype(np.uint8)


def alpha() -> Plane:
    """0 in the left column, 255 in the right one."""
    return np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, WIDTH)).copy()


def picture() -> Image.Image:
    """`rgb()` for Pillow."""
    return Image.fromarray(rgb())


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """A file as Pillow writes it."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG chunk with its checksum."""
    checksum = zlib.crc32(kind + content)
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", checksum)


def header(width: int, height: int, depth: int, colour: int, interlace: int = 0) -> bytes:
    """A PNG's IHDR chunk."""
    return chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(samples: NDArray[np.unsignedinteger], depth: int, colour: int, *chunks: bytes) -> bytes:
    """A PNG by the specification, independent of Pillow.

    Args:
        samples: (height, width) or (height, width, channels), each below 2 ** depth.
        chunks: go between header and pixels.
    """
    height, width = samples.shape[:2]
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        bits = np.unpackbits(samples.reshape(height, -1, 1).astype(np.uint8), axis=2)
        rows = [np.packbits(row[:, 8 - depth :]).tobytes() for row in bits]
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [header(width, height, depth, colour), *chunks, chunk(b"IDAT", pixels)]
    return PNG_SIGNATURE + b"".join(parts) + chunk(b"IEND", b"")


def interlaced(samples: Pixels) -> bytes:
    """A true-colour PNG by Adam7: seven sparse pictures, one after the other."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    rows = [
        b"\0" + row.tobytes()
        for x, y, step_x, step_y in [*passes, (0, 1, 1, 2)]
        for row in samples[y::step_y, x::step_x]
    ]
    height, width = samples.shape[:2]
    parts = [header(width, height, 8, TRUECOLOUR, interlace=1)]
    parts.append(chunk(b"IDAT", zlib.compress(b"".join(rows))))
    return PNG_SIGNATURE + b"".join(parts) + chunk(b"IEND", b"")


def exif(orientation: int, order: str = "<") -> bytes:
    """An EXIF block (TIFF) with a maker's name and an orientation."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(order + "HHL4s", 0x010F, 2, 4, b"Cam\0")
    entries += struct.pack(order + "HHLHH", 0x0112, 3, 1, orientation, 0)
    return start + struct.pack(order + "LH", 8, 2) + entries + struct.pack(order + "L", 0)


def segment(marker: int, content: bytes) -> bytes:
    """A JPEG marker segment."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes `count` times more, empty."""
    data = saved(picture(), "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    scan_header = data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")]
    return data[:end] + scan_header * count + data[end:]


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe segment says YCCK, as Photoshop writes it."""
    data = saved(picture().convert("CMYK"), "JPEG", quality=95)
    adobe = data.index(b"Adobe")
    return data[: adobe + 11] + b"\x02" + data[adobe + 12 :]


def swapped_profile() -> bytes:
    """An ICC profile that is sRGB with red and green exchanged, under another name."""
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for tag in (b"XYZ", b"TRC"):
        icc = icc.replace(b"r" + tag, b"?" + tag, 1)
        icc = icc.replace(b"g" + tag, b"r" + tag, 1).replace(b"?" + tag, b"g" + tag, 1)
    return icc.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def srgb_profile() -> bytes:
    """sRGB as an ICC profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
