"""The loop: batch = scheduler.schedule(now); outcome = runner.run(batch); scheduler.advance().

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock, Thread
from time import monotonic

from configs.app import ModelUserConfig
from deployments.contracts.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineFault,
    GenerationFailed,
    NotReady,
)
from deployments.contracts.figures import EngineFigures
from deployments.contracts.jobs import (
    Asset,
    FailedImage,
    FinishedImage,
    ImageJob,
    JobEvent,
    PartialImage,
    Progress,
    PromptSyntax,
)
from deployments.contracts.stages import Stages
from deployments.contracts.tokens import PromptTokens
from deployments.device import held_bytes
from deployments.diffusion.engine.adapters.shelf import LoraRead, LoraShelf, LoraSlow, Settled
from deployments.diffusion.engine.adapters.sources import LoraSources
from deployments.diffusion.engine.computing import computing
from deployments.diffusion.engine.messages import (
    Broken,
    Cancel,
    Message,
    Reconfigure,
    Relieved,
    Stop,
    Submit,
)
from deployments.diffusion.engine.models.components import Components
from deployments.diffusion.engine.pixels.decoder import Decoded, Decoder, Latent, NotFinite
from deployments.diffusion.engine.policy.admission import Admission
from deployments.diffusion.engine.policy.batch import Advanced, Batch, Outcome, OutOfMemory
from deployments.diffusion.engine.policy.registry import Entry, Registry, Sink, Standing
from deployments.diffusion.engine.policy.report import Report
from deployments.diffusion.engine.policy.scheduler import Scheduler
from deployments.diffusion.engine.policy.spec import LoraSource
from deployments.diffusion.engine.policy.trajectory import Status, Trajectory
from deployments.diffusion.engine.prompts.tokens import Tokenizers
from deployments.diffusion.engine.pulse import LOOK_EVERY_S, Pulse, Watch
from deployments.diffusion.engine.steps.preparation import (
    Forgotten,
    Order,
    Preparation,
    Prepared,
    Preparer,
)
from deployments.diffusion.engine.steps.row import Row
from deployments.diffusion.engine.steps.runner import Runner
from deployments.diffusion.engine.steps.warm_up import WarmUp

MIB = 2**20
DECODER_PATIENCE_S = 30.0  # how long a row that found no memory waits for the decoder's
LAST_PATIENCE_S = 5.0  # how long the end of a broken engine waits for each of its threads
log = logging.getLogger("tcd.engine")


class Engine:
    """Continuous batching for one checkpoint on one device. Making one takes as long as the
    model's `warmup` does.

    Args:
        components: the loaded models; the engine is their only user from now on.
        config: style adapters and limits; `reconfigure` replaces them.
        name: shown in the figures.
        on_fault: called once with `fault` when the engine breaks or hangs, on any thread, before
            any request is told of it.

    Attributes:
        fault: what the engine broke with; `None` while it is well. A broken engine has answered
            all that it held with `EngineFault`, and so refuses what comes.
    """

    def __init__(
        self,
        components: Components,
        config: ModelUserConfig,
        name: str = "engine",
        on_fault: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        limits = config.limits
        self.components = components
        self.fault: Exception | None = None
        self._tokenizers = Tokenizers(components.tokenizers, components.words)
        self._on_fault = on_fault
        self._failing = Lock()
        origin = LoraSources()
        self._admission = Admission(
            components.capabilities, self._tokenizers.tokenize, origin, config
        )
        self._scheduler = Scheduler(limits)
        self._registry = Registry(name)
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._pulse = Pulse()
        self._runner = Runner(components, self._pulse.beat)
        self._preparation = Preparation(
            components, limits.prompt_cache_mb * MIB, self._registry.count_encode
        )
        WarmUp(components, self._preparation, self._runner).run()
        self._pulse.rest()
        self._preparer = Preparer(self._preparation, self._inbox.put, self._break)
        self._decoder = Decoder(
            components.vae,
            components.preview_vae,
            self._registry.count_decode,
            lambda: self._inbox.put(Relieved()),
            self._break,
        )
        self._shelf = LoraShelf(
            components.banks,
            components.lora_reader,
            origin,
            components.device,
            limits.lora_budget_mb * MIB,
            self._inbox.put,
        )
        self._jobs: dict[str, Entry] = {}  # by key
        self._rows: dict[str, tuple[Entry, int]] = {}
        self._idle = True
        self._publish()
        self._thread = computing(self._loop, "tcd-engine", components.device)
        self._thread.start()
        pulses = {
            "engine's loop": self._pulse,
            "preparer": self._preparer.pulse,
            "decoder": self._decoder.pulse,
        }
        self._watch = Watch(pulses, lambda: self._admission.config.limits.hang_s, self._fail)

    def submit(
        self, job: ImageJob, sink: Sink, assets: Sequence[Asset] = (), *, progress: bool = True
    ) -> int:
        """Takes a job with the arrays it names, or refuses it whole. Every image ends in one
        `FinishedImage` or `FailedImage` to `sink`.

        Args:
            progress: tell `sink` of every step.

        Returns the text tokens of its prompts.

        Raises `InvalidRequest` or `NotFound` (it could never run), `QueueFull` (not now),
        `EngineFault` or `NotReady` (not here). Tokenising a long text takes milliseconds, and an
        adapter's source that hangs two seconds, or five if the job `seeks`: callers with an event
        loop call it beside that.
        """
        admitted = self._admission.admit(job, assets)
        entry = Entry(job, sink, admitted.specs, progress=progress)
        self._registry.open(entry, self._admission.config.limits)
        self._inbox.put(Submit(entry, admitted.loras))
        return admitted.prompt_tokens

    def check(self, job: ImageJob) -> None:
        """Raises what `submit` would refuse a job with even if nothing else were to be done,
        whatever its arrays hold."""
        self._admission.check(job)

    def seeks(self, job: ImageJob) -> bool:
        """Whether adapters of a job are to be looked for in the configuration's `loras_from`
        before it can be accepted, which takes as long as that takes to answer."""
        return self._admission.seeks(job)

    def tokens(self, text: str, syntax: PromptSyntax) -> PromptTokens:
        """How a prompt is read. Raises `InvalidRequest` if it cannot be; takes milliseconds."""
        return self._tokenizers.read(text, "prompt", syntax)

    def cancel(self, job_id: str) -> None:
        """Stops a job at the next step boundary; unknown or ended jobs are none to stop."""
        self._inbox.put(Cancel(job_id))

    def stages(self, job_id: str) -> Stages | None:
        """How far a job is; `None`: it is not here, or no more."""
        return self._registry.stages(job_id)

    def reconfigure(self, config: ModelUserConfig) -> None:
        """Takes new adapters and limits; jobs already accepted keep theirs. Idempotent."""
        self._admission.config = config
        self._inbox.put(Reconfigure(config.limits))

    @property
    def max_frames(self) -> int:
        """Most frames of a video; 0: this model makes none."""
        return self._admission.max_frames

    def figures(self) -> EngineFigures:
        """The engine at this moment."""
        held = held_bytes(self.components.device)
        return replace(self._registry.figures(), device_memory_bytes=held)

    def report(self) -> Report:
        """What is told to those who choose between replicas."""
        return self._registry.report()

    def generate(self, job: ImageJob, assets: Sequence[Asset] = ()) -> list[FinishedImage]:
        """Submits a job and waits for it; raises what it failed with."""
        events = self._events(job, assets, progress=False)
        return [event for event in events if isinstance(event, FinishedImage)]

    def events(self, job: ImageJob, assets: Sequence[Asset] = ()) -> Iterator[JobEvent]:
        """Submits a job and returns an iterator over its events, which raises what the job
        failed with. Leaving the iterator early cancels the job."""
        return self._events(job, assets, progress=True)

    def _events(
        self, job: ImageJob, assets: Sequence[Asset], *, progress: bool
    ) -> Iterator[JobEvent]:
        inbox: queue.SimpleQueue[JobEvent] = queue.SimpleQueue()
        self.submit(job, inbox.put, assets, progress=progress)
        return self._received(job, inbox)

    def _received(self, job: ImageJob, inbox: "queue.SimpleQueue[JobEvent]") -> Iterator[JobEvent]:
        left = len(job.seeds)
        try:
            while left:
                event = inbox.get()
                left -= isinstance(event, FinishedImage | FailedImage)
                if isinstance(event, FailedImage):
                    raise event.error
                yield event
        finally:
            if left:
                self.cancel(job.job_id)

    def stop(self) -> None:
        """Ends the loop at the next step boundary; what is unanswered gets `NotReady`. A thread
        that hangs is left to itself."""
        self._registry.close(NotReady("the engine is stopping"))
        self._inbox.put(Stop())
        self._wait_for(self._thread)
        self._preparer.close(self._wait_for)
        self._shelf.close()
        self._decoder.close(self._wait_for)
        self._watch.close()

    def _wait_for(self, thread: Thread) -> None:
        """Until it has ended; from when the engine is broken on, at most `LAST_PATIENCE_S`."""
        while thread.is_alive() and self.fault is None:
            thread.join(LOOK_EVERY_S)
        thread.join(LAST_PATIENCE_S)

    def _break(self, error: Exception) -> None:
        self._inbox.put(Broken(error))

    def _fail(self, fault: Exception) -> None:
        """The engine is broken, whatever it is that broke. Heard once, on any thread."""
        with self._failing:
            if self.fault is not None:
                return
            self.fault = fault
        log.error("the engine broke", exc_info=fault)
        self._on_fault(fault)
        self._close(EngineFault(f"the engine broke: {fault}"))

    def _close(self, error: Exception) -> None:
        for entry in self._registry.close(error):
            self._registry.end(entry, error)

    # Everything below runs on the engine's thread.

    def _loop(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as fault:
            self._fail(fault)
        else:
            self._close(NotReady("the engine was stopped"))
        self._pulse.rest()

    def _turn(self) -> bool:
        if self.fault is not None:
            return False  # it hung, and woke up
        for message in self._messages():
            match message:
                case Stop():
                    return False
                case Submit(entry, loras):
                    self._add(entry, loras)
                case Cancel(job_id):
                    if (cancelled := self._registry.find(job_id)) is not None:
                        self._end(cancelled, Cancelled("the request was cancelled"))
                case Reconfigure(limits):
                    self._scheduler.reconfigure(limits)
                    self._preparation.prompts.cache_bytes = limits.prompt_cache_mb * MIB
                    self._settle(self._shelf.resize(limits.lora_budget_mb * MIB))
                case LoraRead() | LoraSlow():
                    self._settle(self._shelf.take(message))
                case Prepared():
                    self._join(message)
                case Forgotten(job_key):
                    self._settle(self._shelf.release(job_key))
                case Broken(error):
                    raise error
                case Relieved():
                    pass
        for row in self._scheduler.expired(monotonic()):
            if row.row_id in self._rows:
                late = DeadlineExceeded("the request was not done in time")
                self._end(self._rows[row.row_id][0], late)
        after_s = self._registry.after_steps_s
        if not self._decoder.behind:
            for row in self._scheduler.joining(monotonic(), after_s):
                entry, _ = self._rows[row.row_id]
                entry.clock.begun("condition")
                if row.spec.source is not None:  # which is encoded once for all images of the job
                    encode_s = self._registry.encode_s(row.spec.encode_pixels)
                    self._scheduler.beside(row, encode_s / len(entry.job.seeds))
                self._preparer.put(Order(row.row_id, entry.key, row.spec))
        batch = self._scheduler.schedule(monotonic(), after_s)
        self._idle = batch is None
        if batch is not None:
            self._book(batch, self._runner.run(batch))
        self._publish()
        return True

    def _publish(self) -> None:
        scheduler, shelf, backlog = self._scheduler, self._shelf, self._decoder.backlog
        work = replace(scheduler.work, decoding=backlog.images, decode_pixels=backlog.pixels)
        self._registry.publish(
            Standing(
                work,
                running_rows=scheduler.running,
                pending_unet_rows=scheduler.pending_unet_rows,
                batch_limit=scheduler.batch_limit,
                foresight=scheduler.foresight,
                loras_resident=shelf.resident,
                lora_bytes=shelf.resident_bytes,
                lora_loads=shelf.loads,
                lora_evictions=shelf.evictions,
                lora_failures=shelf.failures,
                adapters=shelf.fingerprints,
                failed=shelf.failed,
                compiling=self._runner.compiling,
            )
        )

    def _messages(self) -> Iterator[Message]:
        """What is in the inbox; waits for something, a deadline, or rows that rest, when there is
        no work."""
        try:
            if self._idle:
                self._pulse.rest()
                yield self._inbox.get(timeout=self._rest_s())
            self._pulse.beat()
            while True:
                yield self._inbox.get_nowait()
        except queue.Empty:
            return

    def _rest_s(self) -> float | None:
        """Until something is to be done that nobody tells of; `None`: nothing is."""
        times = [row.deadline for row in self._scheduler.live]
        ends = [time for time in (*times, self._scheduler.resumes) if time is not None]
        return max(0.0, min(ends) - monotonic()) if ends else None

    def _add(self, entry: Entry, loras: dict[str, LoraSource]) -> None:
        self._registry.seen(entry)
        if entry.rows:  # none if it was cancelled before
            self._jobs[entry.key] = entry
        for index, row in entry.rows.items():
            row.status = Status.PREPARING if loras else Status.WAITING
            self._scheduler.add(row)
            self._rows[row.row_id] = (entry, index)
        if loras and entry.rows:
            self._settle(self._shelf.request(entry.key, loras))

    def _settle(self, settled: list[Settled]) -> None:
        for job in settled:
            entry = self._jobs.get(job.job_id)
            if entry is None:
                continue
            if job.error is not None:
                self._end(entry, job.error)
            entry.clock.begun("queue")
            for row in entry.rows.values():
                self._scheduler.ready(row.row_id)

    def _join(self, prepared: Prepared) -> None:
        """A row is ready for its first step, or cannot be had."""
        row = self._scheduler.joined(prepared.row_id)
        if row is None:
            return  # cancelled meanwhile
        if isinstance(prepared.row, Row):
            assert row.slot is not None
            self._runner.adopt(row.slot, prepared.row)
            self._rows[row.row_id][0].clock.begun("steps")
            return
        error = _too_little_memory()
        if not isinstance(prepared.row, OutOfMemory):
            error = prepared.row
        elif self._scheduler.postpone(row.row_id):
            self._wait_for_decoder()
            return
        entry, index = self._rows[row.row_id]
        self._scheduler.abort(row.row_id, Status.FAILED)
        self._registry.answer(entry, FailedImage(index, error))
        self._leave(row, entry, index)

    def _book(self, batch: Batch, outcome: Outcome) -> None:
        left = self._scheduler.advance(batch, outcome)
        failures: Mapping[str, Exception] = {}
        if isinstance(outcome, Advanced):
            failures = outcome.failures
            self._registry.count_step(batch)
            if outcome.measured is not None:
                self._registry.measure_step(outcome.measured)
            for row in batch.rows:
                if row.row_id not in failures and not row.half_taken:
                    if row.cursor == 1:
                        self._registry.count_first(self._rows[row.row_id][0])
                    self._report(row)
        else:
            self._registry.count_out_of_memory()
            log.warning(
                "no memory for %d rows of %dx%d latent pixels", batch.unet_rows, *batch.key[:2]
            )
            if len(batch.rows) == 1 and not left:
                self._wait_for_decoder()
        for row in left:
            entry, index = self._rows[row.row_id]
            if row.status is Status.FINISHED:
                entry.clock.ended("steps")
                self._decode(row, entry, index)
            else:
                error = _too_little_memory()
                if (failure := failures.get(row.row_id)) is not None:
                    error = GenerationFailed(f"a step of the image failed: {failure}")
                self._registry.answer(entry, FailedImage(index, error))
            self._leave(row, entry, index)

    def _wait_for_decoder(self) -> None:
        """Until it has given its memory back. Whether it hangs, its own pulse shows."""
        self._pulse.rest()
        self._decoder.wait_until_idle(DECODER_PATIENCE_S)
        self._pulse.beat()

    def _report(self, row: Trajectory) -> None:
        """Tells a job that one of its rows has taken a step, and shows it if it wants to see."""
        entry, index = self._rows[row.row_id]
        if entry.progress:
            self._registry.tell(entry, Progress(index, row.cursor, row.steps))
        if row.cursor in row.spec.partial_steps and row.slot is not None:
            step, shown = row.cursor, row.spec.partial_steps.index(row.cursor)

            def answer(result: Decoded | Exception) -> None:
                if isinstance(result, Decoded):
                    self._registry.tell(entry, PartialImage(index, shown, step, result.pixels))
                else:
                    log.warning("a partial image could not be decoded: %s", result)

            estimate = self._runner.estimate(row.slot)
            wanted = partial(self._registry.waits, entry, index)
            self._decoder.put(self._charged(row, Latent(estimate, answer, wanted, preview=True)))

    def _decode(self, row: Trajectory, entry: Entry, index: int) -> None:
        def answer(result: Decoded | Exception) -> None:
            if isinstance(result, NotFinite):
                self._registry.answer(entry, FailedImage(index, _not_finite(entry.job)))
            elif isinstance(result, Exception):
                self._registry.answer(entry, FailedImage(index, result))
            else:
                done = FinishedImage(index, row.spec.seed, result.pixels, result.latents)
                self._registry.answer(entry, done)

        assert row.slot is not None
        wanted = partial(self._registry.waits, entry, index)
        latent = Latent(self._runner.latents(row.slot), answer, wanted, entry.deadline)
        self._decoder.put(self._charged(row, latent))

    def _charged(self, row: Trajectory, latent: Latent) -> Latent:
        """What comes of a row, which counts as what the VAE will take for it."""
        seconds = self._registry.decode_s(latent.pixels, preview=latent.preview)
        self._scheduler.beside(row, seconds)
        return latent

    def _leave(self, row: Trajectory, entry: Entry, index: int) -> None:
        """A row's denoising is over: frees what it held."""
        if row.slot is not None:
            self._runner.free(row.slot)
        self._rows.pop(row.row_id, None)  # none if it was cancelled before `_add` saw it
        del entry.rows[index]
        if not entry.rows:
            self._jobs.pop(entry.key, None)
            # Its adapters are released when nothing of it is being made ready any more.
            self._preparer.forget(entry.key)

    def _end(self, entry: Entry, error: Exception) -> None:
        """Ends a whole job: every image not answered yet fails with `error`."""
        for index, row in list(entry.rows.items()):
            self._scheduler.abort(row.row_id)
            self._leave(row, entry, index)
        self._registry.end(entry, error)


def _too_little_memory() -> GenerationFailed:
    return GenerationFailed("the device has too little memory for this image")


def _not_finite(job: ImageJob) -> GenerationFailed:
    text = "the image's numbers left the finite range"
    loras = [f"{lora.name} ({lora.weight:g})" for lora in (*job.loras, *job.motion_loras)]
    if loras:
        text += f"; its loras may be why, with their weights: {', '.join(loras)}"
    return GenerationFailed(text)
