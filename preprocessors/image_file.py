"""Image files of strangers -> pixels, with Pillow. No torch.

PNG, JPEG, WebP and single-frame GIF come in; what is too large is refused by its header,
before anything is allocated for it. No global setting of Pillow is read or changed: the
decoders are called by class, so that neither `Image.open`'s guessing nor its limits apply.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from preprocessors.jpeg import read_segments
from preprocessors.pixels import Pixels, Plane

ALLOWED = "PNG, JPEG, WebP and GIF images with a single frame are allowed"
MAX_ASPECT_RATIO = 100
TRANSPARENT = 128  # alpha below it; exports leave some that is nearly opaque
MAX_JPEG_SCANS = 100
MAX_PNG_CHUNKS = 20_000  # one costs a decoder some microseconds, and a file twelve bytes

_Decoder = Callable[[BytesIO], PngImageFile | JpegImageFile | WebPImageFile | GifImageFile]
_DECODERS: dict[str, _Decoder] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
}
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG, _SHORT = 0x0112, 3


class ImageError(ValueError):
    """The bytes are no image that is accepted; the message says why and what is allowed."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image, upright.

    Attributes:
        rgb: (height, width, 3) uint8, sRGB; under transparent pixels the colours that the
            file has there.
        alpha: (height, width) uint8, 0 transparent, 255 opaque; `None` if the file has no
            transparency at all.
    """

    rgb: Pixels
    alpha: Plane | None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    def on_white(self) -> "Picture":
        """The same with white where it is transparent: what people see of it on a page."""
        if self.alpha is None:
            return self
        laid = Image.new("RGB", self.size, "white")
        laid.paste(Image.fromarray(self.rgb), mask=Image.fromarray(self.alpha))
        return Picture(np.array(laid), self.alpha)


def read_image(data: bytes, *, max_pixels: int, max_bytes: int) -> Picture:
    """Decodes an image file.

    The EXIF orientation is applied. An embedded ICC profile is converted to sRGB, unless it
    is sRGB already or cannot be used. Of 16 bits a sample the upper 8 are kept. CMYK becomes
    RGB, grey three equal channels; a transparent colour (palette, tRNS) becomes alpha.

    Args:
        max_pixels: width x height at most.
        max_bytes: `len(data)` at most.

    Raises `ImageError` for anything else: too large, empty, truncated, corrupt, animated,
    one side more than `MAX_ASPECT_RATIO` times the other, or in another format.
    """
    kind = _accepted(data, max_bytes)
    with _damage(kind):
        return _decode(data, kind, max_pixels)


def declared_size(data: bytes, *, max_pixels: int, max_bytes: int) -> tuple[int, int]:
    """(width, height) of an image file as its decoder reads them in its header, before it is
    turned upright. Nothing is decoded. Raises `ImageError` as `read_image` does, for what the
    header shows."""
    kind = _accepted(data, max_bytes)
    with _damage(kind):
        if kind == "WebP":
            size = _webp_size(data)
        else:
            data, _ = _prepared(data, kind)
            with _DECODERS[kind](BytesIO(data)) as image:
                size = image.size
        check_size(*size, max_pixels)
    return size


def _accepted(data: bytes, max_bytes: int) -> str:
    """The format of a file."""
    if not data:
        raise ImageError(f"the image is empty (0 bytes); {ALLOWED}")
    if len(data) > max_bytes:
        raise ImageError(f"the image has {len(data)} bytes; at most {max_bytes} are allowed")
    check_format(data)
    return _format(data)


def check_format(head: bytes) -> None:
    """Raises `ImageError` if a file that begins so (1 KiB is enough) is in no accepted format."""
    kind = _format(head)
    if kind not in _DECODERS:
        raise ImageError(f"the image is {kind}; {ALLOWED}")


@contextmanager
def _damage(kind: str) -> Iterator[None]:
    """Damaged files raise whatever the decoder stumbled over."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(
            f"the {kind} image is truncated or corrupt ({reason}); {ALLOWED}"
        ) from error


def edit_mask(picture: Picture) -> Plane:
    """Where a picture, sent as a mask, asks for new pixels.

    With an alpha channel that is transparent somewhere, OpenAI's way: transparent means edit,
    opaque means keep, whatever the colours; half transparent pixels are edited by half. Else
    diffusers' `mask_image` way: white means edit, black means keep, by luminance (ITU-R 601).

    Returns (height, width) uint8: 255 edit, 0 keep.
    """
    if picture.alpha is not None and picture.alpha.min() < TRANSPARENT:
        return 255 - picture.alpha
    return np.array(Image.fromarray(picture.rgb).convert("L"))


def _format(data: bytes) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "a BMP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "a TIFF"
    if data.startswith(b"%PDF"):
        return "a PDF"
    if data[4:8] == b"ftyp":
        return "an AVIF, HEIC or video file"
    if b"<svg" in data[:1024].lower():
        return "an SVG"
    return "of an unknown format"


def _decode(data: bytes, kind: str, max_pixels: int) -> Picture:
    if kind == "WebP":  # its decoder allocates all pixels when it is made
        check_size(*_webp_size(data), max_pixels)
    depth = data[24] if kind == "PNG" else 8
    data, exif = _prepared(data, kind)
    with _DECODERS[kind](BytesIO(data)) as image:
        check_size(*image.size, max_pixels)
        if getattr(image, "is_animated", False):
            raise ImageError(f"the {kind} image is animated; {ALLOWED}")
        image.load()
        colours, alpha = _split(image, depth)
        rgb = _to_srgb(colours, image.info.get("icc_profile"))
        turn = _ORIENTATIONS.get(_orientation(exif or image.info.get("exif", b"")))
    if turn is not None:
        rgb = rgb.transpose(turn)
        alpha = None if alpha is None else alpha.transpose(turn)
    return Picture(np.array(rgb), None if alpha is None else np.array(alpha))


def _prepared(data: bytes, kind: str) -> tuple[bytes, bytes]:
    """What the decoder gets, and the EXIF data that it does not get. Raises `ImageError` for a
    file that would take it far longer than its pixels do."""
    if kind == "PNG" and _png_chunks(data) > MAX_PNG_CHUNKS:
        raise ImageError(f"the PNG image has more than {MAX_PNG_CHUNKS} chunks")
    if kind != "JPEG":
        return data, b""
    jpeg = read_segments(data)
    if jpeg.scans > MAX_JPEG_SCANS:
        raise ImageError(
            f"the JPEG image has {jpeg.scans} scans; at most {MAX_JPEG_SCANS} are allowed"
        )
    return jpeg.bare, jpeg.exif


def _png_chunks(data: bytes) -> int:
    """How many chunks a PNG file has, or one more than are allowed."""
    chunks, at = 0, 8
    while at + 12 <= len(data) and chunks <= MAX_PNG_CHUNKS:
        chunks += 1
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return chunks


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises `ImageError` if a picture of so many pixels is not accepted."""
    if width < 1 or height < 1:
        raise ImageError(f"the image is {width} x {height} pixels; there must be at least one")
    if width * height > max_pixels:
        raise ImageError(
            f"the image is {width} x {height} = {width * height} pixels; "
            f"at most {max_pixels} are allowed"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"the image is {width} x {height} pixels; one side may be at most "
            f"{MAX_ASPECT_RATIO} times the other"
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by the header (RFC 9649): extended, lossless or lossy."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _split(image: ImageFile, depth: int) -> tuple[Image.Image, Image.Image | None]:
    """Colours in L, RGB or CMYK, and alpha in L. `depth`: bits a sample of a PNG."""
    transparent = image.info.get("transparency")
    if image.mode == "P":
        whole = image.convert("RGB" if transparent is None else "RGBA")
        return whole.convert("RGB"), None if transparent is None else whole.getchannel("A")
    if image.mode in ("LA", "RGBA"):
        return image.convert(image.mode[:-1]), image.getchannel("A")
    if image.mode == "I;16":
        samples = np.asarray(image)
        colours = Image.fromarray((samples >> 8).astype(np.uint8))
        return colours, _keyed(samples, transparent)
    colours = image.convert("L") if image.mode == "1" else image
    # Pillow brings samples to 8 bits, but not the colour that stands for transparent.
    if image.mode in ("L", "RGB") and transparent is not None:
        scale = 1 / 256 if depth == 16 else 255 / (2**depth - 1)
        transparent = (np.asarray(transparent) * scale).astype(np.int64)
    return colours, _keyed(np.asarray(colours), transparent)


def _keyed(samples: NDArray[np.generic], transparent: object) -> Image.Image | None:
    """Alpha that is 0 where a pixel has the one transparent colour."""
    if transparent is None:
        return None
    equal = samples == np.asarray(transparent)
    if equal.ndim == 3:
        equal = equal.all(axis=2)
    return Image.fromarray(np.where(equal, 0, 255).astype(np.uint8))


def _to_srgb(colours: Image.Image, icc: bytes | None) -> Image.Image:
    """RGB, by the file's colour profile if it has one that differs from sRGB and is usable."""
    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(BytesIO(icc))
            if "sRGB" not in ImageCms.getProfileDescription(profile):
                srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
                converted = ImageCms.profileToProfile(colours, profile, srgb, outputMode="RGB")
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # as browsers do: a damaged profile does not make the picture unreadable
    return colours.convert("RGB")


def _orientation(exif: bytes) -> int:
    """The EXIF orientation, 1-8, from the first directory; 1 where none can be read."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "L", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHLH", tiff, at)
            if (tag, kind) == (_ORIENTATION_TAG, _SHORT):
                return int(value)
    except struct.error:
        pass
    return 1
