"""One diffusers pipeline as a careful user would drive it."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from PIL import Image

from benchmarks.peers.servers.options import Options
from benchmarks.peers.servers.wire import Adapters, Alike, Body, grouped
from benchmarks.pipeline import fused_pipeline, quiet_libraries


class Drawer:
    """A checkpoint with its TCD-LoRA fused, and styles as adapters that are set for each call.

    With `keep`, adapters are loaded when they are asked for, and the most recent ones kept.
    """

    def __init__(self, options: Options) -> None:
        quiet_libraries()
        torch.set_num_threads(options.threads)
        self._pipe = fused_pipeline(options.checkpoint, options.tcd_lora)
        self._files = options.adapters
        self._keep = options.keep
        self._loaded: OrderedDict[str, None] = OrderedDict()  # the most recently used last
        self._set: Adapters | None = None
        self._one_at_a_time = threading.Lock()
        if not self._keep:
            for name in self._files:
                self._load(name)

    def draw(self, rows: Sequence[Body]) -> list[Image.Image]:
        """The images of these rows, one pipeline call for each group of them that are alike."""
        images: dict[int, Image.Image] = {}
        with self._one_at_a_time:
            for alike, indices in grouped(list(rows)).items():
                made = self._call(alike, [rows[index] for index in indices])
                images.update(zip(indices, made, strict=True))
        return [images[index] for index in range(len(rows))]

    def _call(self, alike: Alike, rows: Sequence[Body]) -> list[Image.Image]:
        self._weigh(alike.adapters)
        width, height = map(int, alike.size.split("x"))
        negative = [row.negative_prompt or "" for row in rows] if alike.guidance else None
        made: list[Image.Image] = self._pipe(
            prompt=[row.prompt for row in rows],
            negative_prompt=negative,
            width=width,
            height=height,
            num_inference_steps=alike.steps,
            guidance_scale=alike.guidance,
            eta=alike.eta,
            generator=[torch.Generator().manual_seed(row.seed) for row in rows],
        ).images
        return made

    def _weigh(self, adapters: Adapters) -> None:
        names = [name for name, _ in adapters]
        for name in names:
            if name not in self._loaded:
                self._load(name)
            self._loaded.move_to_end(name)
        while self._keep and len(self._loaded) > max(self._keep, len(names)):
            oldest, _ = self._loaded.popitem(last=False)
            self._pipe.delete_adapters(oldest)
            self._set = None
        if adapters == self._set:
            return
        if adapters:
            self._pipe.enable_lora()
            self._pipe.set_adapters(names, [weight for _, weight in adapters])
        elif self._loaded:
            self._pipe.disable_lora()
        self._set = adapters

    def _load(self, name: str) -> None:
        self._pipe.load_lora_weights(self._files[name], adapter_name=name)
        self._loaded[name] = None
        self._set = None
