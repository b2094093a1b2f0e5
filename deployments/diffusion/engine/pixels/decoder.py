"""Latents to pixels, batched, on a thread of its own: off the critical path of the steps."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from time import monotonic
from typing import NamedTuple

import torch
from torch import Tensor

from deployments.contracts.errors import DeadlineExceeded, GenerationFailed
from deployments.contracts.jobs import Latents, Pixels
from deployments.device import is_of_device, is_out_of_memory
from deployments.diffusion.engine.clock import clock_of
from deployments.diffusion.engine.computing import computing
from deployments.diffusion.engine.models.vae import Vae
from deployments.diffusion.engine.pulse import Pulse

VIDEO_DIMS = 5  # (B, C, frames, h, w)
IMAGES_A_CALL = 16  # of one VAE call, frames of videos too
RECOVERY_CALLS = 64  # without trouble, after which calls may be twice as large again
PIXELS_A_CALL = 2**16  # latent pixels of one VAE call: four images of 1024 x 1024


@dataclass(frozen=True)
class Decoded:
    """`pixels`: (height, width, 3) uint8; `latents`: (C, height / 8, width / 8) float32. Of a
    video (frames, height, width, 3) and (C, frames, height / 8, width / 8)."""

    pixels: Pixels
    latents: Latents


class NotFinite(GenerationFailed):
    """The image's numbers left the finite range."""


Answer = Callable[[Decoded | Exception], None]


class Backlog(NamedTuple):
    """Final images that wait for the VAE or are in it, and their latent pixels."""

    images: int
    pixels: int


@dataclass(frozen=True, eq=False)
class Latent:
    """One image or video to decode.

    Attributes:
        latents: (C, h, w), of a video (C, frames, h, w), on the device.
        answer: called on the decoder's thread with what became of it, unless nobody wants it.
        wanted: asked just before it is decoded; what is wanted no more is dropped.
        deadline: on the clock of `time.monotonic`; past it, it is answered with
            `DeadlineExceeded` instead.
        preview: an estimate that is shown on the way: finals go first.
    """

    latents: Tensor
    answer: Answer
    wanted: Callable[[], bool] = lambda: True
    deadline: float | None = None
    preview: bool = False

    @property
    def pixels(self) -> int:
        """Latent pixels: what its time and memory are in proportion to."""
        return self.latents[0].numel()


@dataclass(frozen=True, eq=False)
class _Item:
    latent: Latent
    ready: torch.cuda.Event | None


class _Done(NamedTuple):
    answers: list[Decoded | Exception]
    seconds: float  # of the device


class Decoder:
    """Decodes what is put into it: finals before previews, in order, equal sizes together.

    A latent that is not finite, and one that the VAE cannot decode even alone, is answered
    with `GenerationFailed`; the others of its call are not affected. Where memory does not
    suffice, calls get smaller and a single image is decoded in tiles.

    Args:
        preview_vae: decodes previews.
        decoded: told of every call: latent pixels, the device's seconds for them, and whether they
            were previews.
        relieved: called whenever the backlog has become smaller.
        broken: told of what no image is to blame for; nothing is decoded any more then.

    Attributes:
        pulse: of its thread.
    """

    def __init__(
        self,
        vae: Vae,
        preview_vae: Vae,
        decoded: Callable[[int, float, bool], None] = lambda *_: None,
        relieved: Callable[[], None] = lambda: None,
        broken: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self._vae = vae
        self._preview_vae = preview_vae
        self._decoded = decoded
        self._relieved = relieved
        self._broken = broken
        self.pulse = Pulse()
        self._device = vae.model.device
        self._items: deque[_Item] = deque()
        self._busy: Sequence[_Item] = ()
        self._wake = Condition()
        self._closed = False
        self._pixels_a_call = PIXELS_A_CALL
        self._calls = 0  # since memory was short
        on_gpu = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if on_gpu else None
        self._thread = computing(self._work, "tcd-decoder", self._device)
        self._thread.start()

    @property
    def backlog(self) -> Backlog:
        """What is still to be decoded. Previews do not count: they wait for everything else."""
        with self._wake:
            finals = [i.latent for i in (*self._busy, *self._items) if not i.latent.preview]
        return Backlog(len(finals), sum(latent.pixels for latent in finals))

    @property
    def behind(self) -> bool:
        """Whether a full call waits already: more finished rows would only pile up."""
        images, pixels = self.backlog
        return images > IMAGES_A_CALL or (images > 1 and pixels > 2 * self._pixels_a_call)

    def put(self, latent: Latent) -> None:
        """Queues an image. What the current stream does to its latents is waited for."""
        ready = None
        if self._stream is not None:
            ready = torch.cuda.current_stream(self._device).record_event()
            latent.latents.record_stream(self._stream)
        with self._wake:
            self._items.append(_Item(latent, ready))
            self._wake.notify_all()

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Returns when nothing is queued or under way, and whether that came true in time."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._items and not self._busy, timeout_s)

    def close(self, wait_for: Callable[[Thread], None] = Thread.join) -> None:
        """Answers what is queued, then ends the thread, and waits for that."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        wait_for(self._thread)

    def _work(self) -> None:
        while items := self._take():
            try:
                with torch.inference_mode():
                    self._decode(items)
            except Exception as error:
                self._broken(error)
                return
            finally:
                self.pulse.rest()
                with self._wake:
                    self._busy = ()
                    self._wake.notify_all()
            self._relieved()

    def _take(self) -> Sequence[_Item]:
        """The next call: the first final, or else the first preview, and what fits beside it."""
        with self._wake:
            self._wake.wait_for(lambda: self._items or self._closed)
            first = next((i for i in self._items if not i.latent.preview), None)
            first = first or next(iter(self._items), None)
            if first is None:
                return ()
            most = min(IMAGES_A_CALL, max(1, self._pixels_a_call // first.latent.pixels))
            taken = [item for item in self._items if _alike(item.latent, first.latent)][:most]
            self._items = deque(item for item in self._items if item not in taken)
            self._busy = taken
            return taken

    def _decode(self, items: Sequence[_Item]) -> None:
        now = monotonic()
        wanted: list[_Item] = []
        for item in items:
            latent = item.latent
            if latent.deadline is not None and latent.deadline <= now:
                latent.answer(DeadlineExceeded("the request was not done in time"))
            elif latent.wanted():
                wanted.append(item)
        if wanted:
            self._decode_wanted(wanted)

    def _decode_wanted(self, items: Sequence[_Item]) -> None:
        self.pulse.beat()
        done = self._tried(items, tiled=False)
        if isinstance(done, Exception) and len(items) > 1:
            # Whose fault it is shows when each is decoded alone.
            if is_out_of_memory(done):
                self._pixels_a_call = sum(item.latent.pixels for item in items) // 2
                self._calls = 0
            for item in items:
                self._decode_wanted([item])
            return
        if isinstance(done, Exception) and is_out_of_memory(done) and self._vae.can_tile:
            done = self._tried(items, tiled=True)
        if isinstance(done, Exception):
            failure = GenerationFailed(f"the VAE could not decode the image: {done}")
            items[0].latent.answer(failure)
            return
        pixels = sum(item.latent.pixels for item in items)
        self._decoded(pixels, done.seconds, items[0].latent.preview)
        self._calls += 1
        if self._calls % RECOVERY_CALLS == 0:
            self._pixels_a_call = min(PIXELS_A_CALL, 2 * self._pixels_a_call)
        for item, answer in zip(items, done.answers, strict=True):
            item.latent.answer(answer)

    def _tried(self, items: Sequence[_Item], *, tiled: bool) -> _Done | Exception:
        try:
            return self._run(items, tiled=tiled)
        except Exception as error:
            if is_of_device(error):
                raise
            failure = error.with_traceback(None)  # which would keep the failed tensors alive
        if is_out_of_memory(failure) and self._device.type == "cuda":
            torch.cuda.empty_cache()
        return failure

    def _run(self, items: Sequence[_Item], *, tiled: bool) -> _Done:
        vae = self._preview_vae if items[0].latent.preview else self._vae
        with torch.cuda.stream(self._stream):
            for item in items:
                if item.ready is not None and self._stream is not None:
                    self._stream.wait_event(item.ready)
            clock = clock_of(self._device)  # not of the steps that the stream waits for
            latents = torch.stack([item.latent.latents for item in items])
            images = _images(vae, latents, tiled=tiled)
            finite = latents.isfinite().flatten(1).all(1) & images.isfinite().flatten(1).all(1)
            pixels = (images.float() / 2 + 0.5).clamp(0, 1).mul(255).round()
            pixels = pixels.nan_to_num().to(torch.uint8).movedim(-3, -1).contiguous()
            there = [_to_host(tensor) for tensor in (pixels, latents.float(), finite)]
            seconds = clock.stop()()
        shown, kept, fine = there
        answers: list[Decoded | Exception] = [
            Decoded(shown[i].numpy(), kept[i].numpy())
            if fine[i]
            else NotFinite("the image's numbers left the finite range")
            for i in range(len(items))
        ]
        return _Done(answers, seconds)


def _alike(one: Latent, other: Latent) -> bool:
    """Whether they may share a call."""
    return one.preview == other.preview and one.latents.shape == other.latents.shape


def _to_host(tensor: Tensor) -> Tensor:
    """A copy for the host, which nobody waits for: from a GPU, it is there once the stream is."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _images(vae: Vae, latents: Tensor, *, tiled: bool) -> Tensor:
    """(B, 3, height, width), or of videos (B, frames, 3, height, width)."""
    if latents.ndim != VIDEO_DIMS:
        return vae.decode(latents, tiled=tiled)
    frames = latents.movedim(2, 1).flatten(0, 1)
    fitting = min(IMAGES_A_CALL, max(1, PIXELS_A_CALL // frames[0, 0].numel()))
    at_once = 1 if tiled else fitting
    images = torch.cat([vae.decode(chunk, tiled=tiled) for chunk in frames.split(at_once)])
    return images.view(len(latents), -1, *images.shape[1:])
