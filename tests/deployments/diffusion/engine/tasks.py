"""Jobs with the arrays that they name: pictures, masks, control maps, embeddings."""

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from configs.app import DEFAULT_IP_ADAPTER, ModelArgs
from configs.families import FamilyName
from deployments.contracts.jobs import (
    Asset,
    ControlUse,
    Embeds,
    FailedImage,
    FinishedImage,
    ImageJob,
    IpAdapterUse,
    JobEvent,
    Mask,
    Pixels,
    Progress,
)
from deployments.diffusion.engine.engine import Engine
from preprocessors.image_encoder import ImageEncoder
from tests.deployments.diffusion.engine.harness import WAIT_S, image_job

Made = dict[tuple[str, int], FinishedImage]  # by job and index
WIDTH, HEIGHT = 136, 96  # no power of two, not square


@dataclass(frozen=True)
class AdapterFiles:
    """An IP-Adapter as h94/IP-Adapter lays it out.

    Attributes:
        encoder: folder of its image encoder, below the repository's root.
        hidden: it reads the encoder's last but one states.
    """

    subfolder: str
    weights: str
    encoder: str
    hidden: bool = False


ADAPTERS: dict[FamilyName, AdapterFiles] = {
    "sd15": AdapterFiles("models", "ip-adapter_sd15.safetensors", "models/image_encoder"),
    "sdxl": AdapterFiles("sdxl_models", "ip-adapter_sdxl.safetensors", "sdxl_models/image_encoder"),
}
PLUS_ADAPTERS: dict[FamilyName, AdapterFiles] = {
    "sd15": AdapterFiles(
        "models", "ip-adapter-plus_sd15.safetensors", "models/image_encoder", hidden=True
    ),
    "sdxl": AdapterFiles(
        "sdxl_models",
        "ip-adapter-plus_sdxl_vit-h.safetensors",
        "models/image_encoder",
        hidden=True,
    ),
}


@dataclass(frozen=True)
class Checkpoint:
    """A stand-in with both ControlNets of its family and, if it has one, an IP-Adapter."""

    models: Path
    family: FamilyName
    folder: str
    adapter: AdapterFiles | None = None

    def args(self) -> ModelArgs:
        """The same for the engine."""
        nets, adapter = self.models / "controlnet" / self.family, None
        if self.adapter is not None:
            file = self.models / "ip-adapter" / self.adapter.subfolder / self.adapter.weights
            adapter = {"adapter": str(file), "image_encoder": "encoder"}
        return ModelArgs.model_validate(
            {
                "name": self.folder,
                "family": self.family,
                "checkpoint": str(self.models / self.folder),
                "tcd_lora": str(self.models / "tcd-lora" / self.family),
                "controls": {kind: str(nets / kind) for kind in ("depth", "canny")},
                "ip_adapter": adapter,
                "dtype": "float32",
                "device": "cpu",
            }
        )

    def embeds(self, picture: Pixels) -> Embeds:
        """(2, ...) float32, as the adapter's encoder makes them: of the picture, of none."""
        assert self.adapter is not None
        (embedding,) = self._encoder.encode([picture], hidden=self.adapter.hidden)
        nothing = self._encoder.unconditional(hidden=self.adapter.hidden)
        pair: Embeds = np.stack([embedding, nothing])
        return pair

    @cached_property
    def _encoder(self) -> ImageEncoder:
        assert self.adapter is not None
        folder = self.models / "ip-adapter" / self.adapter.encoder
        return ImageEncoder(folder, "cpu", "float32")


@dataclass(frozen=True, eq=False)
class Task:
    """A job, the arrays that it names, and the pictures whose embeddings are among them."""

    job: ImageJob
    assets: tuple[Asset, ...] = ()
    seen: tuple[Pixels, ...] = ()


@dataclass(frozen=True)
class Net:
    """A ControlNet in a task: the map is drawn by the task's builder."""

    type: str
    scale: float = 0.5
    start: float = 0.0
    end: float = 1.0


def task(
    job_id: str,
    *,
    image: bool = False,
    mask: Mask | None = None,
    nets: Sequence[Net] = (),
    sees: tuple[Checkpoint, int, float] | None = None,
    **fields: object,
) -> Task:
    """A small job of `fields`, with what it needs beside it.

    Args:
        image: start from a picture; with `mask`, which is made anew where it is 255.
        sees: the IP-Adapter: of which checkpoint, how many pictures, at which scale.
    """
    job = image_job(job_id, **{"width": WIDTH, "height": HEIGHT, **fields})
    size = job.width, job.height
    assets: list[Asset] = []

    def add(asset: Asset) -> int:
        assets.append(asset)
        return len(assets) - 1

    controls = tuple(
        ControlUse(net.type, (add(control_map(net.type, *size)),), net.scale, net.start, net.end)
        for net in nets
    )
    ip_adapters: tuple[IpAdapterUse, ...] = ()
    seen: tuple[Pixels, ...] = ()
    if sees is not None:
        checkpoint, count, scale = sees
        seen = tuple(picture(number, 150, 130) for number in range(count))
        embeds = tuple(add(checkpoint.embeds(p)) for p in seen)
        ip_adapters = (IpAdapterUse(DEFAULT_IP_ADAPTER, embeds, scale),)
    job = replace(
        job,
        image=add(picture(9, *size)) if image else None,
        mask=None if mask is None else add(mask),
        controls=controls,
        ip_adapters=ip_adapters,
    )
    return Task(job, tuple(assets), seen)


def picture(number: int, width: int, height: int) -> Pixels:
    """(height, width, 3): a gradient with two discs, others for every number."""
    source = np.random.default_rng(number)
    yy, xx = np.mgrid[:height, :width]
    pixels = np.stack([xx * 255 // width, yy * 255 // height, (xx + yy) % 256], -1)
    for _ in range(2):
        x, y = source.integers(width), source.integers(height)
        inside = (xx - x) ** 2 + (yy - y) ** 2 < (min(width, height) // 4) ** 2
        pixels[inside] = source.integers(0, 256, 3)
    return pixels.astype(np.uint8)


def control_map(kind: str, width: int, height: int) -> Pixels:
    """(height, width, 3): as smooth as depth, or as hard as edges."""
    yy, xx = np.mgrid[:height, :width]
    plane = xx * 255 // width if kind == "depth" else (xx // 9 + yy // 7) % 2 * 255
    return np.repeat(plane.astype(np.uint8)[:, :, None], 3, axis=2)


def box_mask(width: int = WIDTH, height: int = HEIGHT, *, left: float = 0.3) -> Mask:
    """(height, width): 255 in a box that begins at `left` of the width, not on the latents' grid;
    grey about it, on both sides of what counts as black and as white."""
    mask = np.zeros((height, width), np.uint8)
    x, y = int(width * left), int(height * 0.3)
    mask[y : y + height // 2, x : x + width // 2] = 127
    mask[y + 3 : y + height // 2, x + 5 : x + width // 2] = 128
    mask[y + 9 : y + height // 2 - 9, x + 9 : x + width // 2 - 9] = 255
    return mask


def make_all(
    engine: Engine,
    tasks: Sequence[Task],
    joins: Sequence[int] = (),
    submitted: Callable[[], None] = lambda: None,
) -> Made:
    """Hands tasks to an engine and waits for their images.

    Args:
        joins: of each task, after how many steps of the first one it comes; 0: at once, as if
            left out.
        submitted: called when those that come at once have come.
    """
    events: queue.SimpleQueue[tuple[Task, JobEvent]] = queue.SimpleQueue()
    late: dict[int, list[Task]] = {}
    for index, one in enumerate(tasks):
        late.setdefault(joins[index] if joins and index else 0, []).append(one)

    def hear(one: Task, event: JobEvent) -> None:
        if one is tasks[0] and isinstance(event, Progress):
            for other in late.pop(event.step, ()):
                submit(other)
        events.put((one, event))

    def submit(one: Task) -> None:
        engine.submit(one.job, lambda event: hear(one, event), one.assets)

    for one in late.pop(0):
        submit(one)
    submitted()
    made: Made = {}
    while len(made) < sum(len(one.job.seeds) for one in tasks):
        one, event = events.get(timeout=WAIT_S)
        if isinstance(event, FailedImage):
            raise event.error
        if isinstance(event, FinishedImage):
            made[one.job.job_id, event.image_index] = event
    return made
