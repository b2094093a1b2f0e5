"""Pictures of a video: its first frame, and all of them at a glance."""

import io
import math

import numpy as np
from PIL import Image

from deployments.contracts.jobs import Pixels

THUMBNAIL_TYPE, SPRITESHEET_TYPE = "image/webp", "image/jpeg"
TILE = 256  # pixels, the longer side of a frame in a sheet, at most
QUALITY = 85


def thumbnail(frames: Pixels) -> bytes:
    """A webp of the first of (frames, height, width, 3) uint8 RGB, in its own size."""
    return _file(Image.fromarray(frames[0]), "WEBP")


def spritesheet(frames: Pixels) -> bytes:
    """A jpeg of all of (frames, height, width, 3) uint8 RGB: line by line in as many columns as
    the root of their number, rounded up; what is left of the last line is black. Frames of more
    than 256 pixels a side are made smaller, all alike."""
    count, height, width = frames.shape[:3]
    columns = math.ceil(math.sqrt(count))
    scale = min(1.0, TILE / max(width, height))
    tile = max(1, round(width * scale)), max(1, round(height * scale))
    lines = math.ceil(count / columns)
    sheet = np.zeros((lines * tile[1], columns * tile[0], 3), np.uint8)
    for index, frame in enumerate(frames):
        line, column = divmod(index, columns)
        picture = Image.fromarray(frame).resize(tile, Image.Resampling.LANCZOS)
        top, left = line * tile[1], column * tile[0]
        sheet[top : top + tile[1], left : left + tile[0]] = np.asarray(picture)
    return _file(Image.fromarray(sheet), "JPEG")


def _file(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, quality=QUALITY)
    return file.getvalue()
