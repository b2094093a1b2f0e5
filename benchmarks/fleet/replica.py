"""A replica in virtual time: the project's registry and scheduler around a device of known times.

As in the engine, the UNet's calls and the VAE's share the device; here they take turns by time.
Prompts are encoded in no time.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.fleet.clock import Clock
from benchmarks.fleet.device import Device
from configs.app import Limits
from deployments.contracts.jobs import FinishedImage, ImageJob, JobEvent
from deployments.diffusion.engine.policy.batch import Advanced, Batch, Measured
from deployments.diffusion.engine.policy.registry import Entry, Registry, Standing
from deployments.diffusion.engine.policy.report import Report, adapters_of
from deployments.diffusion.engine.policy.scheduler import Scheduler
from deployments.diffusion.engine.policy.spec import PromptIds, RowSpec
from deployments.diffusion.engine.policy.trajectory import Status, Trajectory

READERS = 2  # of adapters at once, as `LoraShelf` has
IMAGES_A_CALL = 4  # of 1024 x 1024 that the VAE decodes at once ("Memory" in docs/performance.md)
NOTHING = np.zeros((1, 1, 3), np.uint8)
NO_LATENTS = np.zeros((4, 1, 1), np.float32)
TEXT = PromptIds(((),), 0)


class Shelf:
    """Adapters on the device: the least recently used go first, those in use never."""

    def __init__(self, clock: Clock, device: Device, budget_mb: int) -> None:
        self._clock = clock
        self._load_s = device.load_s
        self._room = max(1, int(budget_mb / device.adapter_mb))
        self._held: OrderedDict[int, int] = OrderedDict()  # jobs that use each
        self._coming: dict[int, list[Callable[[], None]]] = {}
        self._waiting: OrderedDict[int, list[Callable[[], None]]] = OrderedDict()
        self.loads = 0

    @property
    def held(self) -> frozenset[int]:
        """Those that are on the device."""
        return frozenset(self._held)

    def request(self, adapter: int, ready: Callable[[], None]) -> None:
        """Calls `ready` once it is there; then it is in use until `release`."""
        if adapter in self._held:
            self._held[adapter] += 1
            self._held.move_to_end(adapter)
            ready()
        elif adapter in self._coming:
            self._coming[adapter].append(ready)
        else:
            self._waiting.setdefault(adapter, []).append(ready)
            self._read()

    def release(self, adapter: int) -> None:
        """One job less uses it."""
        self._held[adapter] -= 1
        self._read()

    def _read(self) -> None:
        while self._waiting and len(self._coming) < READERS:
            if len(self._held) + len(self._coming) >= self._room:
                unused = next((one for one, uses in self._held.items() if not uses), None)
                if unused is None:
                    return
                del self._held[unused]
            adapter, ready = self._waiting.popitem(last=False)
            self._coming[adapter] = ready
            self._clock.after(self._load_s, partial(self._come, adapter))

    def _come(self, adapter: int) -> None:
        self.loads += 1
        ready = self._coming.pop(adapter)
        self._held[adapter] = len(ready)
        for call in ready:
            call()
        self._read()


class Replica:
    """One replica.

    Attributes:
        born: when its device was taken.
        ongoing: jobs that it has.
        busy_s, rows, calls: of the device, and of the UNet.
    """

    def __init__(
        self, name: str, clock: Clock, device: Device, limits: Limits, born: float = 0.0
    ) -> None:
        self.name = name
        self.born = born
        self.ongoing = 0
        self.busy_s, self.rows, self.calls = 0.0, 0, 0
        self.shelf = Shelf(clock, device, limits.lora_budget_mb)
        self._clock, self._device, self._limits = clock, device, limits
        self._scheduler = Scheduler(limits)
        self._registry = Registry(name, lambda: clock.now)
        self._entries: dict[str, tuple[Entry, int]] = {}  # by row
        self._adapters: dict[str, int] = {}  # by row
        self._latents: deque[Trajectory] = deque()  # finished, not decoded
        self._decoding = 0
        self._running = False
        self._unet_s, self._vae_s = 0.0, 0.0  # had of the device while both wanted it
        self._unet_since, self._vae_since = 0.0, 0.0  # from when each has waited for it
        self._publish()

    def submit(self, job: ImageJob, answered: Callable[[], None]) -> None:
        """Takes a job of one image, with at most one adapter. Raises `QueueFull`."""

        def sink(_: JobEvent) -> None:
            self.ongoing -= 1
            answered()

        spec = RowSpec(
            TEXT,
            job.seeds[0],
            job.height,
            job.width,
            job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            negative=TEXT if job.guidance_scale > 1 else None,
        )
        entry = Entry(job, sink, [spec], progress=False)
        self._registry.open(entry, self._limits)
        self._registry.seen(entry)
        self.ongoing += 1
        row = entry.rows[0]
        self._entries[row.row_id] = (entry, 0)
        row.status = Status.PREPARING if job.loras else Status.WAITING
        self._scheduler.add(row)
        for adapter in adapters_of(job):
            self._adapters[row.row_id] = adapter
            self.shelf.request(adapter, partial(self._ready, row.row_id))
        self._wake()

    def report(self) -> Report:
        """As routers hear it."""
        return self._registry.report()

    @property
    def pending_s(self) -> float:
        """As `record_autoscaling_stats` has it."""
        return self._registry.figures().pending_seconds

    @property
    def arriving_s(self) -> float:
        """Likewise."""
        return self._registry.figures().arriving_seconds

    def _ready(self, row_id: str) -> None:
        self._scheduler.ready(row_id)
        self._wake()

    def _wake(self) -> None:
        if not self._running:
            self._unet_since = self._vae_since = self._clock.now
            self._turn()

    def _turn(self) -> None:
        """What the device does next."""
        if len(self._latents) <= 2 * IMAGES_A_CALL:  # as `Decoder.behind` has it
            for row in self._scheduler.joining(self._clock.now):
                self._scheduler.joined(row.row_id)
        vae = bool(self._latents) and self._vae_s <= self._unet_s
        batch = None if vae else self._scheduler.schedule(self._clock.now)
        self._running = batch is not None or bool(self._latents)
        if batch is not None:
            self._call(batch)
        elif self._latents:
            self._decode()
        else:
            self._unet_s = self._vae_s = 0.0
        self._publish()

    def _call(self, batch: Batch) -> None:
        adapted = any(row.row_id in self._adapters for row in batch.rows)
        seconds = self._device.unet_s(batch.unet_rows, batch.key.pixels, adapted=adapted)
        self._unet_s += seconds
        self.busy_s += seconds
        self.rows += batch.unet_rows
        self.calls += 1
        self._clock.after(seconds, partial(self._called, batch))

    def _called(self, batch: Batch) -> None:
        now = self._clock.now
        measured = Measured(batch.key, batch.unet_rows, now - self._unet_since)
        self._unet_since = now
        if not self._latents:  # the VAE did not want it
            self._vae_since, self._vae_s = now, self._unet_s
        self._registry.count_step(batch)
        self._registry.measure_step(measured)
        for row in self._scheduler.advance(batch, Advanced({}, measured)):
            entry, index = self._entries[row.row_id]
            del entry.rows[index]
            self._latents.append(row)
            if (adapter := self._adapters.pop(row.row_id, None)) is not None:
                self.shelf.release(adapter)
        self._turn()

    def _decode(self) -> None:
        self._decoding = min(IMAGES_A_CALL, len(self._latents))
        pixels = sum(self._latents[place].decode_pixels for place in range(self._decoding))
        seconds = self._device.vae_s(pixels)
        self._vae_s += seconds
        self.busy_s += seconds
        self._clock.after(seconds, partial(self._decoded, pixels))

    def _decoded(self, pixels: int) -> None:
        now = self._clock.now
        self._registry.count_decode(pixels, now - self._vae_since)
        self._vae_since = now
        for _ in range(self._decoding):
            row = self._latents.popleft()
            entry, index = self._entries.pop(row.row_id)
            done = FinishedImage(index, entry.job.seeds[index], NOTHING, NO_LATENTS)
            self._registry.answer(entry, done)
        self._turn()

    def _publish(self) -> None:
        scheduler = self._scheduler
        pixels = sum(row.decode_pixels for row in self._latents)
        work = replace(scheduler.work, decoding=len(self._latents), decode_pixels=pixels)
        self._registry.publish(
            Standing(
                work,
                running_rows=scheduler.running,
                pending_unet_rows=scheduler.pending_unet_rows,
                batch_limit=scheduler.batch_limit,
                adapters=self.shelf.held,
            )
        )
