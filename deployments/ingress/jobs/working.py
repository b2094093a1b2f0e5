"""A worker: takes jobs, keeps its leases while it does them, and says how they ended."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from deployments.contracts.errors import StorageUnavailable
from deployments.ingress.answer.failures import failure
from deployments.ingress.jobs.batches import FAULTY, Faulty, faults_text
from deployments.ingress.jobs.choosing import Choosing, room_of
from deployments.ingress.jobs.figures import JobMetrics, figures_of
from deployments.ingress.jobs.making import Answer, Making
from deployments.ingress.request.course import Course, Outcome, begin
from deployments.ingress.request.workers import Workers
from deployments.jobs.queue import JobQueue, LeaseLost, is_held
from deployments.jobs.record import NOT_BEGUN, JobError, JobRecord, Kind, SoFar
from deployments.request_id import begin as carry
from deployments.tracing.spans import root

RENEWALS = 6  # in the time of a lease
LEAST_PAUSE_S = 0.01  # between two turns
LEAST_BEAT_S = 1.0  # between two writes of how far a job is
SWEEP_S = 30.0
SHOWN_S = 5.0
SWEEP_FILES_S = 3600.0
GOODBYE_S = 5.0  # that a worker which is told to go waits for the storage, each time
AWAY_S = 2.0  # between two tries while the storage does not answer
WRITES = 5  # of an answer that fail in a way that nobody expected
Made = TypeVar("Made")
log = logging.getLogger("ray.serve.tcd.jobs")


@dataclass
class _Work:
    """A job that is being done.

    Attributes:
        news: how far it is, when that is worth writing at once.
    """

    job: JobRecord
    so_far: SoFar = NOT_BEGUN
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None

    def report(self, so_far: SoFar) -> None:
        """As `Making.make` tells it."""
        if so_far != self.so_far:
            self.so_far = so_far
            if room_of(self.job) != "line":  # nobody watches one of many: the next beat says it
                self.news.set()


class Working:
    """Does the jobs of a queue, some at a time, until it is stopped.

    Args:
        at_once: jobs at a time; `batch_at_once`: of the background, as lines of batches, beside
            them.
        lease_s: of the queue.
        poll_s: between two looks for work that nobody told of.
        budgets: bytes of what is kept, by kind.
        log_prompts: jobs' prompts may be logged.

    Attributes:
        open: jobs that have not ended, by the last look. Lines of batches are not counted: they
            have what is idle, and no worker is started for them.
    """

    def __init__(
        self,
        queue: JobQueue,
        making: Making,
        *,
        at_once: int,
        batch_at_once: int,
        lease_s: float,
        poll_s: float,
        budgets: Mapping[Kind, int],
        log_prompts: bool = False,
    ) -> None:
        self._queue = queue
        self._making = making
        self._choosing = Choosing(at_once, batch_at_once)
        self._beat_s = max(lease_s / RENEWALS, 0.1)
        self._poll_s = poll_s
        self._budgets = budgets
        self._log_prompts = log_prompts
        self._metrics = JobMetrics()
        self._io = Workers("looks for jobs", threads=2, waiting=None)
        # A lease is renewed whatever the looks wait for.
        self._leases = Workers("leases of jobs", threads=8, waiting=None)
        self._works: dict[str, _Work] = {}
        self._told = asyncio.Event()
        self._news = True
        self._turning = asyncio.Lock()
        self._stopping = False
        self.open = 0

    def nudge(self) -> None:
        """Others may have handed in work, or called some off."""
        self._news = True
        self.wake()

    def wake(self) -> None:
        """There may be room for work, or some that was handed in here."""
        self._told.set()

    async def run(self) -> None:
        """Works until it is cancelled."""
        aside = [asyncio.create_task(self._sweep()), asyncio.create_task(self._shown())]
        try:
            while True:
                self._told.clear()
                try:
                    async with self._turning:
                        await self._turn()
                except StorageUnavailable as error:
                    log.warning("jobs wait: %s", error)
                    await asyncio.sleep(AWAY_S)
                except Exception:
                    log.exception("a look for jobs failed")
                    await asyncio.sleep(AWAY_S)
                try:
                    due_s = self._poll_s if self._stopping else self._poll_s - self._queue.age_s
                    pause_s = max(LEAST_PAUSE_S, due_s)
                    async with asyncio.timeout(pause_s):
                        await self._told.wait()
                except TimeoutError:
                    pass
        finally:
            for task in aside:
                task.cancel()

    async def stop(self, patience_s: float = 0.0) -> None:
        """Takes no more. What is not done within `patience_s` is given back: another worker takes
        it at once."""
        self._stopping = True
        with suppress(TimeoutError):  # the storage may have gone before: what it gives still lapses
            async with asyncio.timeout(GOODBYE_S), self._turning:
                pass  # what was being taken is known now
        tasks = {work.task for work in self._works.values() if work.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=patience_s)
        works = list(self._works.values())
        for work in works:
            _cancel(work)
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.gather(*(self._given_back(work.job) for work in works))

    async def _given_back(self, job: JobRecord) -> None:
        with suppress(LeaseLost, StorageUnavailable):
            await self._leases.run(self._queue.give_back, job)

    async def _turn(self) -> None:
        """Lets go of what is its own no more, and takes what there is room for."""
        choosing = self._choosing
        choosing.begin(work.job for work in self._works.values())
        fresh_s, self._news = 0.0 if self._news else self._poll_s, False
        while not self._stopping:
            job = await self._io.run(self._queue.take, choosing.may_take, fresh_s)
            if job is None:
                break
            fresh_s = math.inf
            choosing.taken(job)
            work = self._works[job.id] = _Work(job)
            work.task = asyncio.create_task(self._do(work))
        choosing.end()
        works = list(self._works.values())
        jobs = {job.id: job for job in self._queue.seen_open()}
        for work in works:
            if work.job.id not in jobs or not is_held(jobs[work.job.id], work.job):
                _cancel(work)
        self.open = sum(not job.ended and room_of(job) != "line" for job in jobs.values())

    async def _do(self, work: _Work) -> None:
        job = work.job
        beating = asyncio.create_task(self._beat(work))
        answered = False
        try:
            ending = await self._ending(work)
            self._metrics.ended(await self._persisted(ending))
            answered = True
        except LeaseLost:
            log.info("job %s is not this worker's any more", job.id)
        except Exception:
            log.exception("what came of job %s could not be written: it is made anew", job.id)
        finally:
            beating.cancel()
            if self._works.get(job.id) is work:
                del self._works[job.id]
            self.wake()
            if not answered:
                await asyncio.shield(self._cleared(job))

    async def _cleared(self, job: JobRecord) -> None:
        """Of a job that was deleted while it was done nothing is left."""
        with suppress(StorageUnavailable):
            await self._io.run(self._queue.clear, job)

    async def _ending(self, work: _Work) -> Callable[[], JobRecord]:
        """How a job ends, as the write that says so."""
        job = work.job
        course = Course(job.id, log_prompts=self._log_prompts)
        course.key = job.owner or None
        # Of a batch: its lines, which are checked as it goes on, have courses of their own.
        begin(course if job.kind != "batch" else Course())
        carry(job.id)
        outcome: Outcome = "cancelled"
        try:
            with root("job", job.traceparent, job=job.id, kind=job.kind, key=job.owner):
                answer: Answer = await self._making.make(job, work.report)
            outcome = "completed"
        except Faulty as error:
            outcome = "refused"
            told = faults_text(error.faults)
            faulty = JobError(code=FAULTY, message=told)
            return lambda: self._queue.fail(job, faulty)
        except Exception as error:
            outcome, refusal = "refused", failure(error)
            said = refusal.body.error
            course.fails(refusal.status, said)
            fault = JobError(code=said.code or "failed", message=said.message, param=said.param)
            return lambda: self._queue.fail(job, fault)
        finally:
            course.tell(f"job {job.kind}", outcome)
        if answer.called_off:
            return lambda: self._queue.wind_up(job, answer.outcome)
        return lambda: self._queue.complete(job, answer.results, answer.outcome)

    async def _beat(self, work: _Work) -> None:
        """Renews a lease in time, and sooner where there is news."""
        while True:
            try:
                async with asyncio.timeout(self._beat_s):
                    await work.news.wait()
            except TimeoutError:
                pass
            work.news.clear()
            try:
                await self._leases.run(self._queue.renew, work.job, work.so_far)
            except LeaseLost:
                _cancel(work)
                return
            except StorageUnavailable as error:
                log.warning("job %s could not be kept: %s", work.job.id, error)
            except Exception:
                log.exception("job %s could not be kept", work.job.id)
            await asyncio.sleep(min(LEAST_BEAT_S, self._beat_s))

    async def _persisted(self, write: Callable[[], Made]) -> Made:
        """What is made is not lost because the storage is away, or fails strangely for a while. If
        it is the answer that cannot be written, that ends."""
        failed = 0
        while True:
            try:
                return await self._leases.run(write)
            except StorageUnavailable as error:
                log.warning("an answer waits: %s", error)
            except LeaseLost:
                raise
            except Exception:
                failed += 1
                if failed == WRITES:
                    raise
                log.exception("an answer waits")
            await asyncio.sleep(AWAY_S)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        searched = loop.time()
        while True:
            try:
                await self._io.run(self._queue.sweep, self._budgets)
                figures = await self._io.run(figures_of, self._queue.seen(), time.time())
                self._metrics.show(figures, self._queue.unreadable)
                if loop.time() - searched > SWEEP_FILES_S:
                    searched = loop.time()
                    await self._io.run(self._queue.sweep_files)
            except StorageUnavailable as error:
                log.warning("jobs are not swept: %s", error)
                self._metrics.away()
            except Exception:
                log.exception("jobs are not swept")
            await asyncio.sleep(SWEEP_S)

    async def _shown(self) -> None:
        """A gauge that is not set again is exported for a while only."""
        while True:
            self._metrics.again()
            await asyncio.sleep(SHOWN_S)


def _cancel(work: _Work) -> None:
    if work.task is not None:
        work.task.cancel()
