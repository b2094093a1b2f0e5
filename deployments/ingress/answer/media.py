"""Pixels to the bytes that a client gets."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from deployments.contracts.api import OutputFormat
from deployments.contracts.jobs import Mask, Pixels
from deployments.contracts.recipe import Recipe
from deployments.ingress.answer.metadata import Metadata, metadata_of
from deployments.ingress.answer.provenance import Provenance

MEDIA_TYPES: dict[OutputFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}
PNG_COMPRESS_LEVEL = 1  # a fifth larger than Pillow's default and several times faster


def encode(
    pixels: Pixels | Mask,
    output_format: OutputFormat,
    quality: int | None = None,
    metadata: Metadata | None = None,
) -> bytes:
    """An image file.

    Args:
        pixels: (height, width, 3) uint8 RGB, or (height, width) grey.
        quality: 0-100, of jpeg and webp; `None`: 100, which webp takes as lossless.
        metadata: in a png as text chunks, else as EXIF.
    """
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if output_format == "png":
        texts = None if metadata is None else metadata.png()
        image.save(file, "PNG", compress_level=PNG_COMPRESS_LEVEL, pnginfo=texts)
        return file.getvalue()
    exif = b"" if metadata is None else metadata.exif()
    if output_format == "jpeg":
        image.save(file, "JPEG", quality=100 if quality is None else quality, exif=exif)
    else:
        lossless = quality is None or quality == 100
        image.save(file, "WEBP", lossless=lossless, quality=75 if lossless else quality, exif=exif)
    return file.getvalue()


@dataclass(frozen=True)
class Encoding:
    """What the images of a request become: files of one format and quality, as `encode` has them;
    with `metadata`, those whose recipe is known say how they were made; with `provenance` they are
    signed."""

    output_format: OutputFormat
    quality: int | None
    metadata: bool
    provenance: Provenance | None = None

    def file(self, pixels: Pixels, recipe: Recipe | None = None, seed: int = 0) -> bytes:
        """An image file."""
        written = None
        if self.metadata and recipe is not None:
            written = metadata_of(recipe, seed, self.output_format, self.quality)
        data = encode(pixels, self.output_format, self.quality, written)
        if self.provenance is None:
            return data
        return self.provenance.signed(data, MEDIA_TYPES[self.output_format], recipe)

    def text(self, pixels: Pixels, recipe: Recipe | None = None, seed: int = 0) -> str:
        """The same in base64, as JSON carries it."""
        return base64.b64encode(self.file(pixels, recipe, seed)).decode("ascii")
