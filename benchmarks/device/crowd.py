"""Callers of an engine, each with its next request as soon as the last one is answered."""

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event, Lock, Thread
from time import perf_counter, sleep
from types import TracebackType
from typing import Self

from deployments.contracts.errors import Cancelled
from deployments.contracts.jobs import ImageJob
from deployments.diffusion.engine.engine import Engine

LOOK_S = 0.02


@dataclass(frozen=True)
class Answered:
    """A request and its time, in seconds of `perf_counter`."""

    job: ImageJob
    started: float
    ended: float

    @property
    def seconds(self) -> float:
        """From the request to the pixels."""
        return self.ended - self.started


@dataclass(frozen=True)
class Flow:
    """What an engine did in a window, by its own figures."""

    rows_s: float
    images_s: float
    rows_a_call: float


class Crowd:
    """Keeps an engine busy while it is entered; what is under way at the end is cancelled.

    Args:
        jobs: what they ask for, one after the other, on whichever caller is free.
        callers: requests in flight.

    Attributes:
        answered: so far, in the order of their ends.
    """

    def __init__(self, engine: Engine, jobs: Iterator[ImageJob], callers: int) -> None:
        self.answered: list[Answered] = []
        self._engine = engine
        self._jobs = jobs
        self._lock = Lock()
        self._over = Event()
        self._under_way: set[str] = set()
        self._error: Exception | None = None
        self._threads = [Thread(target=self._call, daemon=True) for _ in range(callers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        with self._lock:
            for job_id in self._under_way:
                self._engine.cancel(job_id)
        self.wait()

    def wait(self) -> None:
        """Until every caller has got its last answer. Raises what a request failed with."""
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def settle(self) -> None:
        """Until as many requests have been answered as are in flight: joins and leaves are
        spread by then, and whatever is compiled or loaded at first use has been."""
        while self._error is None and len(self.answered) < len(self._threads):
            sleep(LOOK_S)

    def flow(self, window_s: float) -> Flow:
        """What the engine does in a window."""
        before, started = self._engine.figures(), perf_counter()
        sleep(window_s)
        after, seconds = self._engine.figures(), perf_counter() - started
        if self._error is not None:
            raise self._error
        rows, steps = after.rows_total - before.rows_total, after.steps_total - before.steps_total
        images = after.images_total - before.images_total
        return Flow(rows / seconds, images / seconds, rows / max(1, steps))

    def _call(self) -> None:
        try:
            while (job := self._next()) is not None:
                started = perf_counter()
                self._engine.generate(job)
                with self._lock:
                    self._under_way.discard(job.job_id)
                    self.answered.append(Answered(job, started, perf_counter()))
        except Cancelled:
            pass
        except Exception as error:
            self._error = error

    def _next(self) -> ImageJob | None:
        with self._lock:
            job = None if self._over.is_set() else next(self._jobs, None)
            if job is not None:
                self._under_way.add(job.job_id)
            return job
