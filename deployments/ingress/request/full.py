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

MOST_S = 0.25  # that is believed: others may have given up
APART_S = 0.1  # by which requests with as much time may come apart


@dataclass(frozen=True)
class _Asked:
    """What a job needs; `ends_at`: its deadline."""

    images: int
    work: int
    priority: int
    adapters: tuple[str, ...]
    ends_at: float

    @classmethod
    def by(cls, job: ImageJob, now: float) -> Self:
        adapters = tuple(lora.name for lora in (*job.loras, *job.motion_loras))
        ends_at = now + (job.timeout_s or TIMEOUT_S)
        return cls(len(job.seeds), work_of(job), job.priority, adapters, ends_at)

    def covers(self, other: "_Asked", full_s: float) -> bool:
        """Whether another, of the same adapters, asks for as much at least, and goes neither before
        this by its deadline nor so much later that there should be time for it."""
        return (
            other.images >= self.images
            and other.work >= self.work
            and other.priority <= self.priority
            and other.adapters == self.adapters
            and -APART_S <= other.ends_at - self.ends_at < full_s
        )


@dataclass(frozen=True)
class _Told:
    """A refusal, when it came, and for how long it is believed."""

    asked: _Asked
    message: str
    at: float
    wait_s: float
    full_s: float

    def holds_for(self, asked: _Asked, now: float) -> bool:
        """Whether it would be said of another, too."""
        return now < self.at + self.full_s and self.asked.covers(asked, self.full_s)

    def again(self, now: float) -> QueueFull:
        """The same for another, who is told to come back some time after the first."""
        left_s = (self.at + self.wait_s - now) * SystemRandom().uniform(1, 2)
        return QueueFull(f"a moment ago: {self.message}", max(1, round(1000 * left_s)))


class Full:
    """Models whose replicas had no room for a caller's job a moment ago.

    Until there should be some, a quarter of a second at most, what asks for as much is refused at
    once: where more is asked than can be done, most refusals cost no replica anything.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], _Told] = {}  # by model and caller

    @contextmanager
    def asking(self, model: str, job: ImageJob) -> Iterator[None]:
        """Where replicas are asked for a job. Raises `QueueFull` if they would hardly have room
        now, and remembers what they say."""
        now, whose = _now(), (model, job.caller.name)
        asked, told = _Asked.by(job, now), self._told.get(whose)
        if told is not None and told.holds_for(asked, now):
            raise told.again(now)
        try:
            yield
        except QueueFull as error:
            now = _now()
            self._told = {w: t for w, t in self._told.items() if now < t.at + MOST_S}
            full_s = min(error.full_ms / 1000, MOST_S)
            self._told[whose] = _Told(asked, str(error), now, error.retry_after_ms / 1000, full_s)
            raise


def _now() -> float:
    return asyncio.get_running_loop().time()
