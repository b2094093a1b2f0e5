"""What has no room is said by whoever was told just now: replicas are not asked by everyone."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import SystemRandom
from typing import Self

from configs.app import TIMEOUT_S
from deployments.contracts.errors import QueueFull
from deployments.contracts.jobs import ImageJob
from deployments.contracts.work import work_of

MOST_S = 0.25  # between one who asks and the next
FORGOTTEN_AFTER_S = 1.0  # without a refusal


@dataclass(frozen=True)
class _Asked:
    """What a job needs."""

    images: int
    work: int
    time_s: float
    priority: int

    @classmethod
    def by(cls, job: ImageJob) -> Self:
        return cls(len(job.seeds), work_of(job), job.timeout_s or TIMEOUT_S, job.priority)

    def covers(self, other: "_Asked") -> bool:
        """Whether another asks for as much, at least, and may not go before this."""
        return (
            other.images >= self.images
            and other.work >= self.work
            and other.priority <= self.priority
        )


@dataclass
class _Told:
    """A refusal that one was told, and when the next may ask."""

    asked: _Asked
    error: QueueFull
    at: float
    next_at: float

    def holds_for(self, asked: _Asked, now: float) -> bool:
        """Whether it would be said of a job now, too: who has more time has room sooner."""
        sooner_s = max(0.0, asked.time_s - self.asked.time_s)
        return self.asked.covers(asked) and now < self.next_at - sooner_s

    def again(self, now: float) -> QueueFull:
        """The same for another, who is told to come back some time after the first."""
        left_ms = self.error.retry_after_ms - 1000 * (now - self.at)
        wait_ms = max(1, round(left_ms * SystemRandom().uniform(1, 2)))
        return QueueFull(f"a moment ago: {self.error}", wait_ms)


class Full:
    """Models whose replicas had no room for a caller's job a moment ago.

    Until there should be some, what asks for as much is refused at once; from then on one asks for
    all, and the others wait for its answer to be told the same. Where more is asked than can be
    done, so most refusals cost no replica anything.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], _Told] = {}  # by model and caller

    @contextmanager
    def asking(self, model: str, job: ImageJob) -> Iterator[None]:
        """Where replicas are asked for a job. Raises `QueueFull` if they would hardly have room
        now, and remembers what they say."""
        now, asked, whose = _now(), _Asked.by(job), (model, job.caller.name)
        self._told = {key: told for key, told in self._told.items() if _fresh(told, now)}
        told = self._told.get(whose)
        if told is not None and told.holds_for(asked, now):
            raise told.again(now)
        if told is not None:
            told.next_at = now + _pause_s(told.error)
        try:
            yield
        except QueueFull as error:
            now = _now()
            self._told[whose] = _Told(asked, error, now, now + _pause_s(error))
            raise


def _fresh(told: _Told, now: float) -> bool:
    return now < told.at + FORGOTTEN_AFTER_S


def _pause_s(error: QueueFull) -> float:
    return min(error.full_ms / 1000, MOST_S)


def _now() -> float:
    return asyncio.get_running_loop().time()
