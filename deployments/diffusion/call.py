"""A job in the engine, as a handle call sees it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from deployments.contracts.errors import FieldError, GenerationFailed, TcdError
from deployments.contracts.jobs import (
    Asset,
    FailedImage,
    FinishedImage,
    ImageJob,
    JobEvent,
    Usage,
    real_steps,
)
from deployments.contracts.stages import Stages
from deployments.tracing.spans import measured

if TYPE_CHECKING:
    from deployments.diffusion.engine.engine import Engine

PATCH = 16  # pixels a side of what the usage figures count as one image token
THREADS = 4
SEEKING_THREADS = 16
Answer = TypeVar("Answer")
log = logging.getLogger("ray.serve")  # Serve adds the request's id, and writes the replica's file


class AdmissionThreads:
    """Where jobs are checked and tokenised: beside the event loop, which has to answer at once.

    Jobs with adapters have threads of their own: adapters' sources are looked at there, and may
    take their time. So have those whose adapters have to be looked for: nobody else stands behind
    them, and no more of them ask S3 at a time than there are threads.
    """

    def __init__(self) -> None:
        self._plain = ThreadPoolExecutor(THREADS, "tcd-admit")
        self._styled = ThreadPoolExecutor(THREADS, "tcd-admit-loras")
        self._seeking = ThreadPoolExecutor(SEEKING_THREADS, "tcd-admit-seek")

    def run(self, job: ImageJob, work: Callable[[], Answer], *, seeks: bool) -> "Future[Answer]":
        """Does what concerns a job on one of its threads; what has not begun can be cancelled.
        `seeks`: as `Engine.seeks` says."""
        threads = self._styled if job.loras or job.motion_loras else self._plain
        threads = self._seeking if seeks else threads
        return threads.submit(work)

    def plainly(self, work: Callable[[], Answer]) -> "Future[Answer]":
        """Does what looks at no adapter's source."""
        return self._plain.submit(work)


class Call:
    """A job on its way through an engine. Leaving its events early cancels it."""

    def __init__(self, engine: "Engine", job: ImageJob, threads: AdmissionThreads) -> None:
        self._engine = engine
        self._job = job
        self._threads = threads
        self._prompt_tokens = 0
        self._failed: dict[int, TcdError] = {}
        self._shared = False
        self.stages: Stages | None = None  # so far

    async def events(self, assets: Sequence[Asset], *, progress: bool) -> AsyncIterator[JobEvent]:
        """The job's events up to its last image.

        An image that fails by itself is an event. Raises what ends the whole job: that is every
        error but `GenerationFailed`, and that of the first image if all of them failed.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[JobEvent] = asyncio.Queue()

        def sink(event: JobEvent) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        left = 0  # images that the engine still owes
        called_at = time.time()
        try:
            await self._submit(sink, assets, progress)
            left = len(self._job.seeds)
            while left:
                event = await events.get()
                if isinstance(event, FinishedImage | FailedImage):
                    left -= 1
                    self.stages = event.stages
                if isinstance(event, FailedImage):
                    self._note(event)
                elif isinstance(event, FinishedImage):
                    event = replace(event, usage=self._share())
                yield event
        except TcdError as error:
            # What is wrong with a field may be said with the words of a prompt.
            what = f"in {error.param}" if isinstance(error, FieldError) else str(error)
            log.warning("job %s: %s: %s", self._job.job_id, type(error).__name__, what)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            log.info("job %s: given up by its caller", self._job.job_id)
            raise
        finally:
            if left:
                self.stages = self._engine.stages(self._job.job_id) or self.stages
                self._engine.cancel(self._job.job_id)
            self._trace(called_at)

    async def _submit(
        self, sink: Callable[[JobEvent], None], assets: Sequence[Asset], progress: bool
    ) -> None:
        submit = partial(self._engine.submit, self._job, sink, assets, progress=progress)
        seeks = self._engine.seeks(self._job)
        submitted = self._threads.run(self._job, submit, seeks=seeks)
        try:
            self._prompt_tokens = await asyncio.shield(asyncio.wrap_future(submitted))
        except asyncio.CancelledError:
            if not submitted.cancel():  # it may be accepted yet, with nobody waiting
                submitted.add_done_callback(self._withdraw)
            raise

    def _trace(self, called_at: float) -> None:
        """Makes spans of what the engine has measured."""
        if self.stages is None:
            return  # nothing of it was answered
        job = self._job
        measured("admit", called_at, max(called_at, self.stages.began_at))
        for stage, start, end in self.stages.spans():
            if stage == "steps":
                steps, images = real_steps(job.num_inference_steps, job.strength), len(job.seeds)
                measured(stage, start, end, steps=steps, images=images)
            elif stage == "adapters":
                names = [lora.name for lora in (*job.loras, *job.motion_loras)]
                measured(stage, start, end, loras=names)
            else:
                measured(stage, start, end)

    def _withdraw(self, submitted: "Future[int]") -> None:
        if submitted.exception() is None:
            self._engine.cancel(self._job.job_id)

    def _note(self, event: FailedImage) -> None:
        if not isinstance(event.error, GenerationFailed):
            raise event.error
        self._failed[event.image_index] = event.error
        if len(self._failed) == len(self._job.seeds):
            raise self._failed[0]
        name = f"job {self._job.job_id}, image {event.image_index}"
        log.warning("%s: %s: %s", name, type(event.error).__name__, event.error)

    @property
    def usage(self) -> Usage:
        """What the job costs, once the engine has taken it: images that failed are not counted."""
        one, images = self._one, len(self._job.seeds) - len(self._failed)
        return Usage(self._prompt_tokens, one.image_tokens * images, one.denoising_steps * images)

    def _share(self) -> Usage:
        """Of the next image that is done: the first has the prompt's tokens."""
        tokens, self._shared = 0 if self._shared else self._prompt_tokens, True
        return replace(self._one, prompt_tokens=tokens)

    @property
    def _one(self) -> Usage:
        """What one image costs beside the prompt."""
        job = self._job
        patches = -(-job.width // PATCH) * -(-job.height // PATCH) * (job.num_frames or 1)
        steps = real_steps(job.num_inference_steps, job.strength)
        return Usage(image_tokens=patches, denoising_steps=steps)
