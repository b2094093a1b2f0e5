"""Requests as bytes, with what their answers must hold."""

import base64
import io
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
import numpy as np
from PIL import Image

from tests.soak.asking import REFUSALS, Ask
from tests.soak.judging import Judge, Pictures, Probes

GENERATIONS, EDITS, VARIATIONS = (
    f"/v1/images/{route}" for route in ("generations", "edits", "variations")
)
PROMPTS = (
    "a big red ball on the left, in the snow",
    "a small blue cube on the left and a big yellow cone on the right, on the grass",
    "a big cyan cylinder in the center, on the sand",
    "a small green cone on the right, at night",
)
SEEDS = 3
VARIANTS = 5  # pictures and masks

Body = dict[str, object]
# Fields that change nothing of the picture of one seed.
BESIDE = (
    *("n", "seed", "priority", "timeout_s", "output_format", "response_format"),
    *("stream", "partial_images"),
)


@dataclass(frozen=True)
class Target:
    """What the service under load has.

    Attributes:
        models: that make pictures from text.
        full: one of them, with depth, canny, an IP-Adapter and motion.
        sizes: that it is asked for; the first is the usual one.
        loras: style adapters of every model.
        s3_styles, hub_styles: style adapters of `full`, each to be fetched when first used.
        s3_pictures: URIs.
        stores: whether it can answer by URL.
    """

    models: tuple[str, ...]
    full: str
    sizes: tuple[tuple[int, int], ...]
    loras: tuple[str, ...]
    s3_styles: tuple[str, ...] = ()
    hub_styles: tuple[str, ...] = ()
    s3_pictures: tuple[str, ...] = ()
    stores: bool = False


class Making:
    """Makes requests for one target.

    Args:
        key: the bearer key that they carry.

    Attributes:
        pictures: PNG files that requests bring along.
    """

    def __init__(self, url: str, target: Target, probes: Probes, key: str | None) -> None:
        self._url = url
        self._target = target
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.probes = probes
        self.pictures = [_picture(number) for number in range(VARIANTS)]

    def body(self, draw: random.Random) -> Body:
        width, height = draw.choice(self._target.sizes)
        guidance = draw.choice((0.0, 0.0, 4.0))
        body: Body = {
            "model": draw.choice(self._target.models),
            "prompt": draw.choice(PROMPTS),
            "size": f"{width}x{height}",
            "num_inference_steps": draw.choice((1, 4, 4, 6, 12)),
            "eta": draw.choice((0.0, 0.3, 1.0)),
            "guidance_scale": guidance,
            "seed": draw.randrange(SEEDS),
        }
        return body | ({"negative_prompt": "a red ball"} if guidance else {})

    def full(self, draw: random.Random) -> Body:
        return {
            "model": self._target.full,
            "prompt": draw.choice(PROMPTS[:2]),
            "num_inference_steps": 4,
            "seed": draw.randrange(SEEDS),
        }

    def generation(self, kind: str, body: Body, refusals: frozenset[int] = REFUSALS) -> Ask:
        """A request of this body, which has a seed, and what its answer must hold."""
        expected = self.expected(body, {})
        judge: Judge = expected.stream if body.get("stream") else expected.body
        return Ask(kind, self.request("POST", GENERATIONS, json=body), judge, refusals)

    def form(
        self, kind: str, route: str, fields: dict[str, str], seed: int, pictures: dict[str, int]
    ) -> Ask:
        files = {
            name: (f"{name}.png", _mask(number) if name == "mask" else self.pictures[number])
            for name, number in pictures.items()
        }
        expected = self.expected({**fields, "seed": seed}, pictures)
        request = self.request("POST", route, data={**fields, "seed": str(seed)}, files=files)
        return Ask(kind, request, expected.body)

    def expected(self, body: Body, pictures: Mapping[str, int]) -> Pictures:
        """What the answer must hold. Requests that mean the same picture have the same key."""
        same = {name: value for name, value in body.items() if name not in BESIDE}
        key = json.dumps([same, pictures], sort_keys=True)
        output_format = str(body.get("output_format", "png"))
        size = str(body.get("size", ""))
        width, _, height = size.partition("x")
        seed, n = body.get("seed"), body.get("n", 1)
        assert isinstance(seed, int)
        assert isinstance(n, int)
        return Pictures(
            self.probes,
            key if output_format == "png" else None,
            n,
            (int(width), int(height)) if size else None,
            output_format,
            seed,
            urls=body.get("response_format") == "url",
        )

    def url_of(self, draw: random.Random) -> str:
        picture = draw.choice(self.pictures)
        return "data:image/png;base64," + base64.b64encode(picture).decode()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        data: dict[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes]] | None = None,
    ) -> httpx.Request:
        return httpx.Request(
            method, self._url + path, json=json, data=data, files=files, headers=self._headers
        )


def _picture(number: int) -> bytes:
    """A PNG of a few coloured blocks, another for each number."""
    blocks = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return _png(np.kron(blocks, np.ones((16, 16, 1), np.uint8)))


def _mask(number: int) -> bytes:
    """White where it is to be made anew: a part of the picture, another for each number."""
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 8 * (number + 1) :] = 255
    return _png(mask)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        return image.size
