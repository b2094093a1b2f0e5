"""Latents to pixels, batched, on a thread of its own: off the critical path of the steps."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread

import torch
from torch import Tensor

from deployments.contracts.errors import GenerationFailed
from deployments.contracts.jobs import Latents, Pixels
from deployments.diffusion.engine.models.components import Components

VIDEO_DIMS = 5  # (B, C, frames, h, w)
FRAMES_AT_ONCE = 16  # in one VAE call


@dataclass(frozen=True)
class Decoded:
    """`pixels`: (height, width, 3) uint8; `latents`: (C, height / 8, width / 8) float32. Of a
    video (frames, height, width, 3) and (C, frames, height / 8, width / 8)."""

    pixels: Pixels
    latents: Latents


Answer = Callable[[Decoded | Exception], None]


@dataclass(frozen=True)
class _Item:
    latents: Tensor
    answer: Answer
    ready: torch.cuda.Event | None


class Decoder:
    """Decodes what is put into it, in order, equal sizes together.

    A latent that is not finite, and one that the VAE cannot decode even alone, is answered
    with `GenerationFailed`; the others of its batch are not affected.

    Args:
        max_batch: images in one VAE call.
    """

    def __init__(self, components: Components, max_batch: int = 4) -> None:
        self._parts = components
        self._max_batch = max_batch
        self._items: deque[_Item] = deque()
        self._wake = Condition()
        self._closed = False
        self._stream = torch.cuda.Stream() if components.device.type == "cuda" else None
        self._thread = Thread(target=self._work, name="tcd-decoder", daemon=True)
        self._thread.start()

    def put(self, latents: Tensor, answer: Answer) -> None:
        """Queues (C, H, W) latents; `answer` is called on the decoder's thread."""
        ready = None
        if self._stream is not None:
            ready = torch.cuda.Event()
            ready.record()
            latents.record_stream(self._stream)
        with self._wake:
            self._items.append(_Item(latents, answer, ready))
            self._wake.notify()

    def close(self) -> None:
        """Answers what is queued, then ends the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        while items := self._take():
            with torch.inference_mode():
                self._decode(items)

    def _take(self) -> list[_Item]:
        with self._wake:
            self._wake.wait_for(lambda: self._items or self._closed)
            taken: list[_Item] = []
            passed: deque[_Item] = deque()
            while self._items and len(taken) < self._max_batch:
                item = self._items.popleft()
                same = not taken or item.latents.shape == taken[0].latents.shape
                (taken if same else passed).append(item)
            self._items.extendleft(reversed(passed))
            return taken

    def _decode(self, items: Sequence[_Item]) -> None:
        try:
            answers = self._run(items)
        except Exception as error:  # whose fault it is shows when each is decoded alone
            if len(items) == 1:
                items[0].answer(GenerationFailed(f"the VAE could not decode the image: {error}"))
                return
            for item in items:
                self._decode([item])
            return
        for item, answer in zip(items, answers, strict=True):
            item.answer(answer)

    def _run(self, items: Sequence[_Item]) -> list[Decoded | Exception]:
        with torch.cuda.stream(self._stream):
            for item in items:
                if item.ready is not None and self._stream is not None:
                    self._stream.wait_event(item.ready)
            latents = torch.stack([item.latents for item in items])
            images = self._images(latents)
            finite = latents.isfinite().flatten(1).all(1) & images.isfinite().flatten(1).all(1)
            pixels = (images.float() / 2 + 0.5).clamp(0, 1).mul(255).round()
            pixels = pixels.nan_to_num().to(torch.uint8).movedim(-3, -1).contiguous().cpu()
            host, fine = latents.float().cpu(), finite.tolist()
        return [
            Decoded(pixels[i].numpy(), host[i].numpy())
            if fine[i]
            else GenerationFailed("the image's numbers left the finite range")
            for i in range(len(items))
        ]

    def _images(self, latents: Tensor) -> Tensor:
        """(B, 3, height, width), or of videos (B, frames, 3, height, width)."""
        if latents.ndim == VIDEO_DIMS:
            frames = latents.movedim(2, 1).flatten(0, 1).split(FRAMES_AT_ONCE)
            images = torch.cat([self._vae(chunk) for chunk in frames])
            return images.view(len(latents), -1, *images.shape[1:])
        return self._vae(latents)

    def _vae(self, latents: Tensor) -> Tensor:
        """(B, 3, height, width) in [-1, 1], as the diffusers pipelines decode."""
        vae, config = self._parts.vae, self._parts.vae.config
        latents = latents.to(vae.dtype)
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and std is not None:
            shape = (1, -1, 1, 1)
            latents = latents * torch.tensor(std).view(shape).to(latents) / config.scaling_factor
            latents = latents + torch.tensor(mean).view(shape).to(latents)
        else:
            latents = latents / config.scaling_factor
        images: Tensor = vae.decode(latents, return_dict=False)[0]
        return images
