"""What a job is asked for, and how it is kept: its pictures beside it, as files."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
from PIL import Image

from deployments.contracts.api import OutputFormat
from deployments.contracts.jobs import ImageInput, ImageRequest, Quality, VideoRequest
from deployments.contracts.videos import VideoFormat
from deployments.ingress.request.budget import pictures_of
from deployments.ingress.request.pictures import name_of
from deployments.ingress.request.recipes import named_controls, named_ip_adapters
from deployments.jobs.record import Kept

Request = TypeVar("Request", bound=ImageRequest | VideoRequest)


class ImageAsked(Kept):
    """Images, and how they are to be answered.

    Attributes:
        webhook_url: who is told what becomes of them.
        inline: the answer carries its images, instead of their URLs.
        quality, ignored: what the answer repeats of the request.
        events: how the names of the answer's events begin.
    """

    request: ImageRequest
    webhook_url: str | None = None
    output_format: OutputFormat = "png"
    output_compression: int | None = None
    metadata: bool = True
    inline: bool = False
    quality: Quality = "auto"
    ignored: tuple[str, ...] = ()
    events: str = "image_generation"


class VideoAsked(Kept):
    """A video, what its file is to be, and who is told what becomes of it."""

    request: VideoRequest
    webhook_url: str | None = None
    output_format: VideoFormat = "mp4"
    metadata: bool = True


Asked = ImageAsked | VideoAsked


def digest_of(asked: Asked) -> str:
    """Tells one request from another; of its pictures, their digests count."""
    named = {
        param: name_of(image.encode() if isinstance(image, str) else image)
        for param, image in pictures_of(asked.request).items()
    }
    text = asked.model_copy(update={"request": with_pictures(asked.request, named)})
    # A field that a later release adds changes nothing where it is left out.
    said = text.model_dump_json(exclude_defaults=True)
    return hashlib.sha256(said.encode()).hexdigest()


def with_pictures(request: Request, pictures: Mapping[str, ImageInput]) -> Request:
    """The request with other pictures, or their names, in these fields."""
    adapters = named_ip_adapters(request, pictures)
    resembled = adapters if isinstance(request.ip_adapter, tuple) else next(iter(adapters), None)
    controls = named_controls(request, pictures)
    image = pictures.get("image")
    if isinstance(request, VideoRequest):
        return replace(request, image=image, controls=controls, ip_adapter=resembled)
    return replace(
        request, image=image, mask=pictures.get("mask"), controls=controls, ip_adapter=resembled
    )


def file_of(content: bytes | np.ndarray) -> bytes:
    """A picture as a file: pixels as PNG, from which they come back as they are."""
    if isinstance(content, bytes):
        return content
    file = io.BytesIO()
    Image.fromarray(content).save(file, "PNG", compress_level=1)
    return file.getvalue()
