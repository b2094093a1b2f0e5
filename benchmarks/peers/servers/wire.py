"""The bodies that the peers' servers read and write: the part of ours that the traffic uses."""

import base64
import io
import time
from typing import NamedTuple

from PIL import Image
from pydantic import BaseModel

PNG_COMPRESS_LEVEL = 1  # as ours has it

Adapters = tuple[tuple[str, float], ...]  # by name, with their weights


class Alike(NamedTuple):
    """What requests must have in common to share a pipeline call.

    Attributes:
        guidance: 0 where it is not in force.
    """

    steps: int
    guidance: float
    eta: float
    adapters: Adapters
    size: str


class LoraBody(BaseModel):
    """One style adapter of a request."""

    name: str
    weight: float = 1.0


class Body(BaseModel):
    """A request for one image."""

    model: str
    prompt: str
    negative_prompt: str | None = None
    size: str
    seed: int
    num_inference_steps: int = 4
    eta: float = 0.3
    guidance_scale: float = 0.0
    loras: list[LoraBody] = []

    @property
    def adapters(self) -> Adapters:
        """In one order, however they were written."""
        return tuple(sorted((lora.name, lora.weight) for lora in self.loras))

    @property
    def alike(self) -> Alike:
        """The group that it belongs to."""
        guidance = self.guidance_scale if self.guidance_scale > 1 else 0.0
        return Alike(self.num_inference_steps, guidance, self.eta, self.adapters, self.size)


def grouped(rows: list[Body]) -> dict[Alike, list[int]]:
    """Indices of the rows that may share a call, in the order of their first."""
    groups: dict[Alike, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.alike, []).append(index)
    return groups


def answer(image: Image.Image) -> dict[str, object]:
    """PNG in base64 in JSON."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=PNG_COMPRESS_LEVEL)
    text = base64.b64encode(file.getvalue()).decode("ascii")
    return {"created": int(time.time()), "data": [{"b64_json": text}]}
