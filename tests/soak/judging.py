"""Whether an answer is what was asked for: sizes, formats, seeds, the same picture as before."""

import base64
import binascii
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

LEVELS = 1  # of 255, by which the composition of a batch may move a pixel


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        """The body. Raises ValueError if it is no JSON object."""
        read = json.loads(self.body)
        if not isinstance(read, dict):
            raise ValueError("the body is no JSON object")
        return read


Judge = Callable[[Answer], str | None]  # what is wrong with it


def anything(answer: Answer) -> str | None:
    """Any success will do."""
    del answer
    return None


class Probes:
    """The pictures that requests gave before, by what was asked."""

    def __init__(self) -> None:
        self._pictures: dict[str, np.ndarray] = {}
        self.repeated = 0
        self.moved = 0  # repeats of which some pixel was a level apart

    def compare(self, key: str, picture: np.ndarray) -> str | None:
        """What is wrong, if this request has been answered before."""
        known = self._pictures.setdefault(key, picture)
        if known is picture:
            return None
        if known.shape != picture.shape:
            return f"{picture.shape} pixels, and {known.shape} before"
        apart = int(np.abs(known.astype(int) - picture.astype(int)).max())
        self.repeated += 1
        self.moved += apart > 0
        return f"{apart} levels from the same request's picture before" if apart > LEVELS else None


@dataclass(frozen=True)
class Pictures:
    """What the answer to an images request must hold.

    Attributes:
        key: names the request among the probes, but for the seed; `None`: it has no seed, or its
            format loses something.
        size: (width, height); `None`: the model's own.
        seed: of the first image; image *i* has seed + *i*.
        urls: as `response_format: "url"`.
    """

    probes: Probes
    key: str | None
    n: int
    size: tuple[int, int] | None
    output_format: str
    seed: int | None
    urls: bool = False

    def body(self, answer: Answer) -> str | None:
        """Of a JSON answer."""
        read = answer.json()
        data = read.get("data")
        if not isinstance(data, list) or len(data) != self.n:
            return f"{self.n} images were asked for; data is {str(data)[:80]}"
        if "usage" not in read or read.get("output_format") != self.output_format:
            return "usage or output_format is wrong"
        return next(filter(None, (self._image(i, item) for i, item in enumerate(data))), None)

    def stream(self, answer: Answer) -> str | None:
        """Of server-sent events."""
        finished: dict[int, dict[str, object]] = {}
        for name, data in events(answer.body):
            if name.endswith(".completed"):
                finished[int(str(data["image_index"]))] = data
        if sorted(finished) != list(range(self.n)):
            return f"images {sorted(finished)} of {self.n} were completed"
        return next(filter(None, (self._image(i, item) for i, item in finished.items())), None)

    def _image(self, index: int, item: dict[str, object]) -> str | None:
        if self.seed is not None and item.get("seed") != self.seed + index:
            return f"image {index} has seed {item.get('seed')}, not {self.seed + index}"
        if self.urls:
            return None if str(item.get("url", "")) else "no url"
        try:
            file = base64.b64decode(str(item.get("b64_json")), validate=True)
        except binascii.Error as error:
            return f"image {index} is not base64: {error}"
        return self.file(file, index)

    def file(self, data: bytes, index: int = 0) -> str | None:
        """Of one image's bytes."""
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        except (OSError, ValueError) as error:
            return f"image {index} cannot be read: {error}"
        if image.format != self.output_format.upper():
            return f"image {index} is {image.format}"
        if self.size is not None and image.size != self.size:
            return f"image {index} is {image.size}, not {self.size}"
        if self.key is None:
            return None
        which = (self.seed or 0) + index
        return self.probes.compare(f"{self.key}#{which}", np.asarray(image.convert("RGB")))


def events(body: bytes) -> list[tuple[str, dict[str, object]]]:
    """(name, data) of complete server-sent events. Raises ValueError if one is no event."""
    found: list[tuple[str, dict[str, object]]] = []
    for block in body.decode().split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        found.append((lines["event"], json.loads(lines["data"])))
    return found


@dataclass(frozen=True)
class Map:
    """A control map as PNG, of the picture's size."""

    probes: Probes
    key: str
    size: tuple[int, int]

    def __call__(self, answer: Answer) -> str | None:
        """A `Judge`."""
        if not answer.headers.get("x-map-id", "").startswith("map-"):
            return "no x-map-id"
        return Pictures(self.probes, self.key, 1, self.size, "png", None).file(answer.body)


@dataclass(frozen=True)
class Says:
    """Text that holds these words."""

    words: tuple[str, ...] = field(default=())

    def __call__(self, answer: Answer) -> str | None:
        """A `Judge`."""
        text = answer.body.decode(errors="replace")
        missing = [word for word in self.words if word not in text]
        return f"it does not say {missing[0]}" if missing else None
