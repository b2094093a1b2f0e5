"""Threads of a kind of work, with a queue that ends; and work that is done side by side."""

import asyncio
import math
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from deployments.contracts.errors import QueueFull

Args = ParamSpec("Args")
Made = TypeVar("Made")

CPU_THREADS = min(4, os.cpu_count() or 1)
CPU_WAITING = 256
AT_ONCE = 8  # of the pictures, maps or files of one request


class Workers:
    """Runs work that would hold up an event loop.

    A thread that hangs is one thread fewer of this kind, and none of another kind's.

    Args:
        kind: what the work is, as a refusal names it.
        threads: how much of it is done at a time.
        waiting: how much may wait beside; more is refused. `None`: whatever comes.
    """

    def __init__(
        self, kind: str, threads: int = CPU_THREADS, waiting: int | None = CPU_WAITING
    ) -> None:
        self._kind = kind
        self._most = math.inf if waiting is None else threads + waiting
        self._threads = ThreadPoolExecutor(threads, f"tcd-{kind.replace(' ', '-')}")
        self._lock = threading.Lock()
        self._unfinished = 0

    @property
    def unfinished(self) -> int:
        """Pieces of work that wait or are being done, also those that nobody waits for any more."""
        return self._unfinished

    async def run(
        self, work: Callable[Args, Made], *args: Args.args, **kwargs: Args.kwargs
    ) -> Made:
        """What `work` returns. If the caller is cancelled, work that has not begun is dropped.

        Raises `QueueFull` if too much waits already.
        """
        with self._lock:
            if self._unfinished >= self._most:
                raise QueueFull(f"too much {self._kind} is waiting already")
            self._unfinished += 1
        future = self._threads.submit(work, *args, **kwargs)
        future.add_done_callback(self._ended)
        return await asyncio.wrap_future(future)

    def _ended(self, _: Future[Made]) -> None:
        with self._lock:
            self._unfinished -= 1


async def together(
    work: Iterable[Coroutine[object, object, Made]], at_once: int = AT_ONCE
) -> list[Made]:
    """The results of all, in order, `at_once` of them in the making at a time, each drawn from
    `work` when it begins. When one fails, those are cancelled, and its error is raised after they
    have ended."""
    numbered = enumerate(work)
    made: dict[int, Made] = {}

    async def worker() -> None:
        for index, each in numbered:
            made[index] = await each

    task = asyncio.current_task()
    assert task is not None
    cancelled = task.cancelling()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())
    except BaseExceptionGroup as failed:
        # Python 3.11's groups leave the cancellation counted by which they ended themselves: a
        # timeout of the same task would take a later one for somebody else's.
        while task.cancelling() > cancelled:
            task.uncancel()
        raise failed.exceptions[0] from None
    return [made[index] for index in sorted(made)]
