"""Many pictures at once from a running service, as arrays."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.client import Body, Client, Picture
from demo.world.caption import EVERYTHING, Said, caption
from demo.world.look import Look, draw_look
from demo.world.scene import Scene

AT_ONCE = 12  # requests in flight

Pixels = NDArray[np.uint8]
Asked = TypeVar("Asked")
Got = TypeVar("Got")


def at_once(asked: Sequence[Asked], ask: Callable[[Asked], Got]) -> list[Got]:
    """What `ask` says to each, in order, several at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, asked))


def draw(client: Client, bodies: Sequence[Body]) -> Pixels:
    """(bodies, height, width, 3): the pictures of `POST /v1/images/generations`."""
    return stacked(at_once(bodies, client.generate))


def stacked(pictures: Sequence[Picture]) -> Pixels:
    """Pictures of one size as one array."""
    return np.stack([np.asarray(picture) for picture in pictures])


def bodies(scenes: Sequence[Scene], said: Said = EVERYTHING, **fields: object) -> list[Body]:
    """A request for each scene in words; picture i has seed i."""
    return [
        {"model": "sd15", "prompt": caption(scene, said), "seed": seed, **fields}
        for seed, scene in enumerate(scenes)
    ]


def looks_of(scenes: Sequence[Scene]) -> list[Look]:
    """A look of each scene, always the same."""
    return [draw_look(scene, np.random.default_rng([31, i])) for i, scene in enumerate(scenes)]


def picture_of(pixels: Pixels) -> Picture:
    """An array as a picture."""
    return Image.fromarray(pixels)
