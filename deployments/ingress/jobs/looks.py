"""Looks at the jobs that are kept: beside the event loop, and in time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from deployments.contracts.errors import StorageUnavailable
from deployments.ingress.request.workers import Workers
from deployments.jobs.queue import JobQueue
from deployments.jobs.record import JobRecord

GLANCES = 16  # at one job each, of those who wait for it
LOOKS = 2  # at the jobs; what is read of them waits beside for a thread
PATIENCE_S = 60.0  # for the storage to answer
COUNTED_S = 30.0  # that what is counted may lag behind what others have deleted, or archived

Answer = TypeVar("Answer")
Read = Callable[[Sequence[JobRecord]], Answer]


class Looks:
    """A queue as those see it who only read. Every method raises `StorageUnavailable`, also of a
    storage that hangs."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._at_one = Workers("glances at jobs", threads=GLANCES, waiting=None)
        self._at_open = Workers("looks at jobs", threads=LOOKS, waiting=None)
        self._at_all = Workers("looks at all jobs", threads=LOOKS, waiting=None)
        self._glances: dict[str, asyncio.Task[JobRecord]] = {}
        self._open = _Together(lambda: in_time(self._at_open.run(queue.open_jobs)))
        self._all: dict[float, _Together[Sequence[JobRecord]]] = {}

    async def at_one(self, job_id: str) -> JobRecord:
        """A job as it stands; who asks while another does shares that look. Raises `NotFound`."""
        glance = self._glances.get(job_id)
        if glance is None:
            glance = asyncio.create_task(in_time(self._at_one.run(self._queue.get, job_id)))
            self._glances[job_id] = glance
            glance.add_done_callback(lambda _: self._glances.pop(job_id))
            glance.add_done_callback(_noted)
        return await asyncio.shield(glance)

    async def at_open(self, read: Read[Answer]) -> Answer:
        """What is `read` of `open_jobs` of the queue, in a thread: they may be many. Those share a
        look who ask before it begins."""
        jobs = await in_time(self._open.answer())
        return await in_time(self._at_open.run(lambda: read(jobs)))

    async def at_all(self, read: Read[Answer], fresh_s: float = 0.0) -> Answer:
        """The same of all jobs. `fresh_s`: as `jobs` of the queue takes it."""
        look = self._all.setdefault(fresh_s, _Together(lambda: self._looked_at_all(fresh_s)))
        jobs = await in_time(look.answer())
        return await in_time(self._at_all.run(lambda: read(jobs)))

    async def _looked_at_all(self, fresh_s: float) -> Sequence[JobRecord]:
        return await in_time(self._at_all.run(self._queue.jobs, fresh_s))


class _Together(Generic[Answer]):
    """A call that is made once for all who ask before it begins; it begins when the last one has
    ended."""

    def __init__(self, call: Callable[[], Awaitable[Answer]]) -> None:
        self._call = call
        self._next: asyncio.Task[Answer] | None = None
        self._last: asyncio.Task[Answer] | None = None

    async def answer(self) -> Answer:
        """What it gives. Who leaves takes nobody with him."""
        if self._next is None or self._next.done():  # its loop may have ended before it began
            self._next = asyncio.create_task(self._made())
            self._next.add_done_callback(_noted)
        return await asyncio.shield(self._next)

    async def _made(self) -> Answer:
        if self._last is not None and not self._last.done():
            await asyncio.wait({self._last})
        self._last, self._next = self._next, None
        return await self._call()


async def in_time(answer: Awaitable[Answer]) -> Answer:
    """Whoever asks hears of a storage that hangs: raises `StorageUnavailable`."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await answer
    except TimeoutError:
        raise StorageUnavailable(
            f"the storage of jobs has not answered for {PATIENCE_S:g} s"
        ) from None


def _noted(look: "asyncio.Task[Any]") -> None:
    """Whoever waited for it may have gone, and then nobody asks how it failed."""
    if not look.cancelled():
        look.exception()
