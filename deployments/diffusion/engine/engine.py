"""The loop: batch = scheduler.schedule(); outcome = runner.run(batch); scheduler.advance().

Usable alone from Python, without Ray:

    engine = Engine(load(args), ModelUserConfig())
    images = engine.generate(job)
    engine.stop()

The loop's state belongs to the engine's thread; other threads speak to it through an inbox
that it reads between two steps. A job's events go to the sink that came with it, called from
the engine's or the decoder's thread.
"""

import logging
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from threading import Lock, Thread
from time import monotonic

from configs.app import Limits, ModelUserConfig
from deployments.contracts.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFault,
    GenerationFailed,
    InvalidRequest,
    NotReady,
    QueueFull,
)
from deployments.contracts.jobs import (
    EngineFigures,
    FailedImage,
    FinishedImage,
    ImageJob,
    JobEvent,
    PartialImage,
    Progress,
)
from deployments.diffusion.engine.admission import Admission
from deployments.diffusion.engine.batch import Advanced, Batch, Outcome
from deployments.diffusion.engine.components import Components
from deployments.diffusion.engine.decoder import Decoded, Decoder
from deployments.diffusion.engine.lora_shelf import LoraRead, LoraShelf, Settled
from deployments.diffusion.engine.runner import Runner
from deployments.diffusion.engine.scheduler import Scheduler
from deployments.diffusion.engine.spec import RowSpec
from deployments.diffusion.engine.trajectory import Status, Trajectory

Sink = Callable[[JobEvent], None]
MIB = 2**20
SMOOTHING = 0.1  # of the measured step time: weight of the newest step
UNMEASURED_ROW_STEP_S = 0.5  # until the first step has been measured
log = logging.getLogger("tcd.engine")


class _Entry:
    """A job in the engine. `unanswered` is guarded by the engine's lock."""

    def __init__(self, job: ImageJob, sink: Sink, specs: list[RowSpec]) -> None:
        deadline = None if job.timeout_s is None else monotonic() + job.timeout_s
        self.job = job
        self.sink = sink
        self.rows = {
            index: Trajectory(f"{job.job_id}/{index}", spec, job.priority, deadline)
            for index, spec in enumerate(specs)
        }
        self.unanswered = set(self.rows)


@dataclass(frozen=True)
class _Submit:
    entry: _Entry
    loras: dict[str, str]  # sources by key


@dataclass(frozen=True)
class _Cancel:
    job_id: str


@dataclass(frozen=True)
class _Reconfigure:
    limits: Limits


@dataclass(frozen=True)
class _Stop:
    pass


_Message = _Submit | _Cancel | _Reconfigure | _Stop | LoraRead


class Engine:
    """Continuous batching for one checkpoint on one device.

    Args:
        components: the loaded models; the engine is their only user from now on.
        config: style adapters and limits; `reconfigure` replaces them.
        name: shown in the figures.
    """

    def __init__(
        self, components: Components, config: ModelUserConfig, name: str = "engine"
    ) -> None:
        limits = config.limits
        self.components = components
        self._admission = Admission(components, config)
        self._scheduler = Scheduler(limits)
        self._runner = Runner(components, limits.prompt_cache_mb * MIB)
        self._decoder = Decoder(components)
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._shelf = LoraShelf(components, limits.lora_budget_mb * MIB, self._inbox.put)
        self._idle = True
        self._lock = Lock()
        self._entries: dict[str, _Entry] = {}
        self._rows: dict[str, tuple[_Entry, int]] = {}
        self._accepted = 0
        self._stopped = False
        self._first_room_s = self._each_room_s = UNMEASURED_ROW_STEP_S
        self.fault: Exception | None = None
        self._figures = EngineFigures(name, batch_limit=limits.max_batch)
        self._thread = Thread(target=self._loop, name="tcd-engine", daemon=True)
        self._thread.start()

    def submit(self, job: ImageJob, sink: Sink) -> None:
        """Takes a job, or refuses it whole. Every image ends in one `FinishedImage` or
        `FailedImage` to `sink`.

        Raises `InvalidRequest` or `NotFound` (it could never run), `QueueFull` (not now),
        `EngineFault` or `NotReady` (not here).
        """
        specs, loras = self._admission.admit(job)
        entry = _Entry(job, sink, specs)
        with self._lock:
            if self.fault is not None:
                raise EngineFault(f"the engine broke: {self.fault}")
            if self._stopped:
                raise NotReady("the engine is stopping")
            if job.job_id in self._entries:
                raise InvalidRequest(f"job_id {job.job_id!r} is already in the engine", "job_id")
            self._check_room(len(specs))
            self._accepted += len(specs)
            self._entries[job.job_id] = entry
        self._inbox.put(_Submit(entry, loras))

    def cancel(self, job_id: str) -> None:
        """Stops a job at the next step boundary; unknown or ended jobs are none to stop."""
        self._inbox.put(_Cancel(job_id))

    def reconfigure(self, config: ModelUserConfig) -> None:
        """Takes new adapters and limits; jobs already accepted keep theirs. Idempotent."""
        self._admission.config = config
        self._inbox.put(_Reconfigure(config.limits))

    def prompt_tokens(self, job: ImageJob) -> int:
        """Text tokens that a job's prompts take."""
        return self._admission.prompt_tokens(job)

    def figures(self) -> EngineFigures:
        """The engine at this moment."""
        with self._lock:
            return replace(self._figures, pending_images=self._accepted)

    def generate(self, job: ImageJob) -> list[FinishedImage]:
        """Submits a job and waits for it; raises what it failed with."""
        return [event for event in self.events(job) if isinstance(event, FinishedImage)]

    def events(self, job: ImageJob) -> Iterator[JobEvent]:
        """Submits a job and yields its events; raises what it failed with. Leaving the
        iterator early cancels the job."""
        inbox: queue.SimpleQueue[JobEvent] = queue.SimpleQueue()
        self.submit(job, inbox.put)
        left = len(job.seeds)
        try:
            while left:
                event = inbox.get()
                if isinstance(event, FailedImage):
                    raise event.error
                left -= isinstance(event, FinishedImage)
                yield event
        finally:
            if left:
                self.cancel(job.job_id)

    def stop(self) -> None:
        """Ends the loop at the next step boundary; what is unanswered gets `NotReady`."""
        with self._lock:
            self._stopped = True
        self._inbox.put(_Stop())
        self._thread.join()
        self._shelf.close()
        self._decoder.close()

    def _check_room(self, images: int) -> None:
        limit = self._admission.config.limits.max_pending
        excess = self._accepted + images - limit
        if excess > 0:
            wait_s = self._first_room_s + (excess - 1) * self._each_room_s
            raise QueueFull(
                f"{self._accepted} of {limit} images are pending; room for {images} more "
                f"is expected in {wait_s:.1f} s",
                max(1, round(wait_s * 1000)),
            )

    # Everything below runs on the engine's thread, except `_answer`.

    def _loop(self) -> None:
        try:
            while self._turn():
                pass
            error: Exception = NotReady("the engine was stopped")
        except Exception as fault:
            log.exception("the engine broke")
            error = EngineFault(f"the engine broke: {fault}")
            with self._lock:
                self.fault = fault
        with self._lock:
            left = list(self._entries.values())
        for entry in left:
            self._end(entry, error)

    def _turn(self) -> bool:
        for message in self._messages():
            match message:
                case _Stop():
                    return False
                case _Submit(entry, loras):
                    self._add(entry, loras)
                case _Cancel(job_id):
                    with self._lock:
                        cancelled = self._entries.get(job_id)
                    if cancelled is not None:
                        self._end(cancelled, Cancelled("the request was cancelled"))
                case _Reconfigure(limits):
                    self._scheduler.reconfigure(limits)
                    self._runner.prompts.cache_bytes = limits.prompt_cache_mb * MIB
                    self._settle(self._shelf.resize(limits.lora_budget_mb * MIB))
                case LoraRead():
                    self._settle(self._shelf.take(message))
        for row in self._scheduler.expired(monotonic()):
            if row.row_id in self._rows:
                entry = self._rows[row.row_id][0]
                late = f"the request was not done within {entry.job.timeout_s:g} s"
                self._end(entry, DeadlineExceeded(late))
        batch = self._scheduler.schedule()
        self._idle = batch is None
        if batch is not None:
            self._book(batch, self._runner.run(batch))
        self._publish()
        return True

    def _messages(self) -> Iterator[_Message]:
        """What is in the inbox; waits for something, or a deadline, when there is no work."""
        try:
            if self._idle:
                yield self._inbox.get(timeout=self._next_deadline_s())
            while True:
                yield self._inbox.get_nowait()
        except queue.Empty:
            return

    def _next_deadline_s(self) -> float | None:
        deadlines = [row.deadline for row in self._scheduler.live if row.deadline is not None]
        return max(0.0, min(deadlines) - monotonic()) if deadlines else None

    def _add(self, entry: _Entry, loras: dict[str, str]) -> None:
        for index, row in entry.rows.items():
            row.status = Status.PREPARING if loras else Status.WAITING
            self._scheduler.add(row)
            self._rows[row.row_id] = (entry, index)
        if loras:
            self._settle(self._shelf.request(entry.job.job_id, loras))

    def _settle(self, settled: list[Settled]) -> None:
        for job in settled:
            with self._lock:
                entry = self._entries.get(job.job_id)
            if entry is None:
                continue
            if job.error is not None:
                self._end(entry, job.error)
            for row in entry.rows.values():
                self._scheduler.ready(row.row_id)

    def _book(self, batch: Batch, outcome: Outcome) -> None:
        left = self._scheduler.advance(batch, outcome)
        if isinstance(outcome, Advanced):
            self._count_step(batch, outcome)
            for row in batch.rows:
                self._report(row)
        else:
            limit = self._scheduler.batch_limit
            log.warning("no memory for %d rows; at most %d from now on", batch.unet_rows, limit)
        for row in left:
            entry, index = self._rows[row.row_id]
            if row.status is Status.FINISHED:
                self._decode(row, entry, index)
            else:
                error = GenerationFailed("the device has too little memory for this image")
                self._answer(entry, FailedImage(index, error))
            self._leave(row, entry, index)

    def _report(self, row: Trajectory) -> None:
        """Tells a job that one of its rows has taken a step, and shows it if it wants to see."""
        entry, index = self._rows[row.row_id]
        self._send(entry, Progress(index, row.cursor, row.steps))
        if row.cursor in row.spec.partial_steps and row.slot is not None:
            step, shown = row.cursor, row.spec.partial_steps.index(row.cursor)

            def answer(result: Decoded | Exception) -> None:
                if isinstance(result, Decoded):
                    self._send(entry, PartialImage(index, shown, step, result.pixels))

            self._decoder.put(self._runner.estimate(row.slot), answer)

    def _decode(self, row: Trajectory, entry: _Entry, index: int) -> None:
        def answer(result: Decoded | Exception) -> None:
            if isinstance(result, Exception):
                self._answer(entry, FailedImage(index, result))
            else:
                done = FinishedImage(index, row.spec.seed, result.pixels, result.latents)
                self._answer(entry, done)

        assert row.slot is not None
        self._decoder.put(self._runner.latents(row.slot), answer)

    def _leave(self, row: Trajectory, entry: _Entry, index: int) -> None:
        """A row's denoising is over: frees what it held."""
        if row.slot is not None:
            self._runner.free(row.slot)
        del self._rows[row.row_id]
        del entry.rows[index]
        if not entry.rows:
            self._settle(self._shelf.release(entry.job.job_id))

    def _end(self, entry: _Entry, error: Exception) -> None:
        """Ends a whole job: every image not answered yet fails with `error`."""
        for index, row in list(entry.rows.items()):
            self._scheduler.abort(row.row_id)
            self._leave(row, entry, index)
        with self._lock:
            unanswered = sorted(entry.unanswered)
        for index in unanswered:
            self._answer(entry, FailedImage(index, error))

    def _send(self, entry: _Entry, event: Progress | PartialImage) -> None:
        with self._lock:
            if event.image_index not in entry.unanswered:
                return
        _deliver(entry, event)

    def _answer(self, entry: _Entry, event: FinishedImage | FailedImage) -> None:
        """Answers an image, once; a decoder that comes after a cancellation is not heard."""
        with self._lock:
            if event.image_index not in entry.unanswered:
                return
            entry.unanswered.discard(event.image_index)
            self._accepted -= 1
            if not entry.unanswered:
                del self._entries[entry.job.job_id]
            self._count_answer(event)
        _deliver(entry, event)

    def _count_answer(self, event: FinishedImage | FailedImage) -> None:
        figures = self._figures
        if isinstance(event, FinishedImage):
            self._figures = replace(figures, images_total=figures.images_total + 1)
        elif isinstance(event.error, Cancelled):
            self._figures = replace(figures, cancelled_total=figures.cancelled_total + 1)
        else:
            self._figures = replace(figures, failed_total=figures.failed_total + 1)

    def _count_step(self, batch: Batch, outcome: Advanced) -> None:
        per_row = outcome.seconds / batch.unet_rows
        with self._lock:
            figures = self._figures
            known = figures.seconds_per_row_step or per_row
            self._figures = replace(
                figures,
                seconds_per_row_step=known + SMOOTHING * (per_row - known),
                steps_total=figures.steps_total + 1,
                rows_total=figures.rows_total + batch.unet_rows,
            )

    def _publish(self) -> None:
        """Shows the loop's state to other threads."""
        scheduler, shelf = self._scheduler, self._shelf
        pending, live = scheduler.pending_unet_rows, len(scheduler.live)
        until_room = scheduler.unet_rows_until_room(1) if live else 0
        with self._lock:
            per_row = self._figures.seconds_per_row_step or UNMEASURED_ROW_STEP_S
            self._first_room_s = per_row * max(1, until_room)
            self._each_room_s = per_row * max(1, pending // max(1, live))
            self._figures = replace(
                self._figures,
                running_rows=scheduler.running,
                pending_steps=pending,
                loras_resident=shelf.resident,
                lora_bytes=shelf.resident_bytes,
                lora_loads_total=shelf.loads,
                lora_evictions_total=shelf.evictions,
                batch_limit=scheduler.batch_limit,
            )


def _deliver(entry: _Entry, event: JobEvent) -> None:
    """A sink that raises loses its event; it must not take the engine down."""
    try:
        entry.sink(event)
    except Exception:
        log.exception("the sink of job %s raised", entry.job.job_id)
