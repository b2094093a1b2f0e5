"""Who waits for what: accepted jobs, their unanswered images, and the counts of it all.

Thread-safe, and the only part of the engine that is: callers open jobs here, the engine's and the
decoder's threads answer them, anyone may look at the figures.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from time import monotonic

from deployments.contracts.errors import Cancelled, InvalidRequest, QueueFull
from deployments.contracts.figures import EngineFigures
from deployments.contracts.jobs import (
    FailedImage,
    FinishedImage,
    ImageJob,
    JobEvent,
    PartialImage,
    Progress,
)
from deployments.diffusion.engine.adapters.shelf import LoraShelf
from deployments.diffusion.engine.policy.scheduler import Scheduler
from deployments.diffusion.engine.policy.spec import RowSpec
from deployments.diffusion.engine.policy.trajectory import Trajectory

Sink = Callable[[JobEvent], None]
SMOOTHING = 0.1  # of the measured step time: weight of the newest step
UNMEASURED_STEP_S = 0.5  # of 64 x 64 latent pixels, until the first step has been measured
UNMEASURED_PIXEL_S = UNMEASURED_STEP_S / 64**2
log = logging.getLogger("tcd.engine")


class Entry:
    """A job in the engine.

    Attributes:
        rows: its images still to be denoised, by index; only the engine's thread changes it.
        unanswered: its images still to be answered; only the ledger changes it.
    """

    def __init__(self, job: ImageJob, sink: Sink, specs: list[RowSpec]) -> None:
        deadline = None if job.timeout_s is None else monotonic() + job.timeout_s
        self.job = job
        self.sink = sink
        self.rows = {
            index: Trajectory(f"{job.job_id}/{index}", spec, job.priority, deadline)
            for index, spec in enumerate(specs)
        }
        self.unanswered = set(self.rows)


class Ledger:
    """Answers every image of every job that it opened, exactly once."""

    def __init__(self, name: str) -> None:
        self._lock = Lock()
        self._entries: dict[str, Entry] = {}
        self._closed: Exception | None = None
        self._figures = EngineFigures(name)
        self._pixel_s: float | None = None  # measured, moving average
        self._first_room_s = self._each_room_s = UNMEASURED_STEP_S

    def open(self, entry: Entry, max_pending: int) -> None:
        """Takes a job in, whole.

        Raises `QueueFull` if more than `max_pending` images would wait, `InvalidRequest` if the
        id is in use, and what `close` was given once that was called.
        """
        job, images = entry.job, len(entry.unanswered)
        with self._lock:
            if self._closed is not None:
                raise self._closed
            if job.job_id in self._entries:
                raise InvalidRequest(f"job_id {job.job_id!r} is already in the engine", "job_id")
            pending = self._figures.pending_images
            excess = pending + images - max_pending
            if excess > 0:
                wait_s = self._first_room_s + (excess - 1) * self._each_room_s
                raise QueueFull(
                    f"{pending} of {max_pending} images are pending; room for {images} more "
                    f"is expected in {wait_s:.1f} s",
                    max(1, round(wait_s * 1000)),
                )
            self._entries[job.job_id] = entry
            self._figures = replace(self._figures, pending_images=pending + images)

    def close(self, error: Exception) -> tuple[Entry, ...]:
        """Opens nothing from now on, but raises `error`. Returns the jobs still open. The
        first error stays."""
        with self._lock:
            self._closed = self._closed or error
            return tuple(self._entries.values())

    def find(self, job_id: str) -> Entry | None:
        """An open job."""
        with self._lock:
            return self._entries.get(job_id)

    def tell(self, entry: Entry, event: Progress | PartialImage) -> None:
        """Tells a job how one of its images stands, unless it has been answered."""
        with self._lock:
            open_ = event.image_index in entry.unanswered
        if open_:
            _deliver(entry, event)

    def answer(self, entry: Entry, event: FinishedImage | FailedImage) -> None:
        """Answers an image. A second answer (a decoder after a cancellation) is not heard."""
        with self._lock:
            if event.image_index not in entry.unanswered:
                return
            entry.unanswered.discard(event.image_index)
            if not entry.unanswered:
                del self._entries[entry.job.job_id]
            self._figures = _counted(self._figures, event)
        _deliver(entry, event)

    def end(self, entry: Entry, error: Exception) -> None:
        """Answers what is unanswered of a job with an error."""
        with self._lock:
            unanswered = sorted(entry.unanswered)
        for index in unanswered:
            self.answer(entry, FailedImage(index, error))

    def count_step(self, unet_rows: int, pixels: int, seconds: float) -> None:
        """A UNet call of so many rows, and latent pixels in them, took so long."""
        per_row, per_pixel = seconds / unet_rows, seconds / pixels
        with self._lock:
            pixel_s = self._pixel_s or per_pixel
            self._pixel_s = pixel_s + SMOOTHING * (per_pixel - pixel_s)
            figures = self._figures
            known = figures.seconds_per_row_step or per_row
            self._figures = replace(
                figures,
                seconds_per_row_step=known + SMOOTHING * (per_row - known),
                steps_total=figures.steps_total + 1,
                rows_total=figures.rows_total + unet_rows,
            )

    def publish(self, scheduler: Scheduler, shelf: LoraShelf) -> None:
        """Shows the loop's state to other threads. Called on the engine's thread."""
        live, pixels = len(scheduler.live), scheduler.pending_pixels
        until_room = scheduler.pixels_until_room(1) if live else 0
        with self._lock:
            pixel_s = self._pixel_s or UNMEASURED_PIXEL_S
            self._first_room_s = pixel_s * until_room
            self._each_room_s = pixel_s * pixels / max(1, live)
            self._figures = replace(
                self._figures,
                running_rows=scheduler.running,
                pending_steps=scheduler.pending_unet_rows,
                pending_seconds=pixel_s * pixels,
                loras_resident=shelf.resident,
                lora_bytes=shelf.resident_bytes,
                lora_loads_total=shelf.loads,
                lora_evictions_total=shelf.evictions,
                batch_limit=scheduler.batch_limit,
            )

    def figures(self) -> EngineFigures:
        """The engine at this moment."""
        with self._lock:
            return self._figures


def _counted(figures: EngineFigures, event: FinishedImage | FailedImage) -> EngineFigures:
    figures = replace(figures, pending_images=figures.pending_images - 1)
    if isinstance(event, FinishedImage):
        return replace(figures, images_total=figures.images_total + 1)
    if isinstance(event.error, Cancelled):
        return replace(figures, cancelled_total=figures.cancelled_total + 1)
    return replace(figures, failed_total=figures.failed_total + 1)


def _deliver(entry: Entry, event: JobEvent) -> None:
    """A sink that raises loses its event; it must not take the engine down."""
    try:
        entry.sink(event)
    except Exception:
        log.exception("the sink of job %s raised", entry.job.job_id)
