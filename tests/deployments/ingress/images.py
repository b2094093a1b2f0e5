"""Pictures to send, and what comes back."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from openai.types import ImagesResponse, ModerationImageURLInputParam
from PIL import Image

from deployments.contracts.jobs import Mask, Pixels

LEVELS = 2  # how far a pixel may be from the oracle's


def png(pixels: Pixels | Image.Image, alpha: Mask | None = None) -> bytes:
    """A PNG file of (height, width, 3) pixels, or of a mask, with an alpha channel if given."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_url(file: bytes) -> str:
    """A file as text."""
    return "data:image/png;base64," + base64.b64encode(file).decode()


def moderated(url: str) -> ModerationImageURLInputParam:
    """A picture as the official client has it judged."""
    return {"type": "image_url", "image_url": {"url": url}}


def shown(file: bytes) -> Pixels:
    """(height, width, 3) pixels of a file."""
    pixels: Pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    return pixels


def pixels_of(answer: ImagesResponse, index: int = 0) -> Pixels:
    """(height, width, 3) pixels of an image of an answer."""
    assert answer.data is not None
    return shown(base64.b64decode(answer.data[index].b64_json or ""))


def apart(one: Pixels, other: Pixels) -> NDArray[np.int16]:
    """(height, width): by how many levels pixels differ."""
    assert one.shape == other.shape
    difference: NDArray[np.int16] = np.abs(one.astype(np.int16) - other).max(axis=2)
    return difference
