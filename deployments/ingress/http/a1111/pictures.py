"""Pictures as A1111's clients send them, and as they are read there.

Masks: white, or painted on nothing, is made anew. What a picture to start from has that is
transparent is white, and no mask.
"""

import numpy as np

from deployments.contracts.jobs import ImageInput
from deployments.ingress.answer.media import encode
from deployments.ingress.request.pictures import Pictures
from preprocessors.image_file import TRANSPARENT, Picture, edit_mask

NAMED = ("data:", "https:", "http:", "s3:", "map-")  # base64 has neither a colon nor a hyphen


def picture(sent: str) -> str:
    """A picture that may be base64 alone, as `ImageInput` says it."""
    return sent if sent.startswith(NAMED) else "data:;base64," + sent


async def mask_file(pictures: Pictures, mask: str, inverted: bool) -> bytes:
    """A grey PNG whose white is made anew, of a mask as it was sent. Raises `InvalidRequest`."""
    brought = (await pictures.bring({"mask": picture(mask)}))["mask"]
    async with pictures.decoded(brought) as (loaded,):
        return await pictures.workers.run(made_anew, loaded.picture, inverted)


async def start_file(pictures: Pictures, image: str) -> ImageInput:
    """A picture to start from without a mask; if some of it is transparent, a PNG of it on white.
    Raises `InvalidRequest`."""
    named = picture(image)
    brought = (await pictures.bring({"image": named}))["image"]
    async with pictures.decoded(brought) as (loaded,):
        if not _transparent(loaded.picture):
            return named
        return await pictures.workers.run(encode, loaded.pixels, "png")


def made_anew(mask: Picture, inverted: bool) -> bytes:
    """A grey PNG: opaque is white where some of the mask is transparent, else it is as bright."""
    if mask.alpha is not None and _transparent(mask):
        anew = np.where(mask.alpha > TRANSPARENT, 255, 0).astype(np.uint8)
    else:
        anew = edit_mask(mask)
    return encode(255 - anew if inverted else anew, "png")


def _transparent(seen: Picture) -> bool:
    return seen.alpha is not None and bool(seen.alpha.min() < TRANSPARENT)
