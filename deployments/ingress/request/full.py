"""What has no room is said by whoever was told just now: replicas are not asked by everyone."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil
from random import SystemRandom
from typing import Self

from configs.app import TIMEOUT_S
from deployments.contracts.errors import QueueFull
from deployments.contracts.jobs import ImageJob
from deployments.contracts.work import work_of

MOST_S = 0.25  # between those who ask: others may have given up
FORGOTTEN_AFTER_S = 1.0  # without a refusal
# Ask of each replica, of all who are refused together: were it one, what is free by then would not
# all be filled.
AT_A_TIME = 2
ALIKE = 2  # times as much time, or as little, that tells little


@dataclass(frozen=True)
class _Asked:
    """What a job needs."""

    images: int
    work: int
    priority: int
    adapters: tuple[str, ...]
    time_s: float

    @classmethod
    def by(cls, job: ImageJob) -> Self:
        adapters = tuple(lora.name for lora in (*job.loras, *job.motion_loras))
        time_s = job.timeout_s or TIMEOUT_S
        return cls(len(job.seeds), work_of(job), job.priority, adapters, time_s)

    def covers(self, other: "_Asked") -> bool:
        """Whether another, of the same adapters, asks for as much at least in about as much time:
        in much less it may go before this, and in much more there may be room."""
        return (
            other.images >= self.images
            and other.work >= self.work
            and other.priority <= self.priority
            and other.adapters == self.adapters
            and self.time_s / ALIKE <= other.time_s <= self.time_s * ALIKE
        )


@dataclass
class _Told:
    """A refusal, when it came, when it was last asked for, and how many may ask until when."""

    asked: _Asked
    message: str
    at: float
    asked_at: float
    wait_s: float
    full_s: float
    next_at: float
    may_ask: int = 0

    def is_fresh(self, now: float) -> bool:
        """Whether it says anything of now."""
        return now < self.at + FORGOTTEN_AFTER_S

    def is_asked_for(self, now: float) -> bool:
        """Whether its caller would ask replicas now, were it not held back."""
        return self.full_s > 0 and now < self.asked_at + MOST_S

    def lets(self, many: Callable[[], int], now: float) -> bool:
        """Whether one more may ask, of `many` between whom there is a pause."""
        self.asked_at = now
        if now >= self.next_at:
            self.next_at, self.may_ask = now + self.full_s, many()
        self.may_ask -= 1
        return self.may_ask >= 0

    def again(self, now: float) -> QueueFull:
        """The same for another, who is told to come back some time after the first."""
        left_s = (max(self.at + self.wait_s, self.next_at) - now) * SystemRandom().uniform(1, 2)
        return QueueFull(f"a moment ago: {self.message}", max(1, round(1000 * left_s)))


class Full:
    """Models whose replicas had no room for a caller's job a moment ago.

    While that should last, what asks for as much is refused at once; from then on two ask of
    each replica at a time, of each refused caller at least one, and the others are refused, until
    none of a caller's was by a replica for a second. Where more is asked than can be done, most
    refusals cost no replica anything.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], _Told] = {}  # by model and caller

    @contextmanager
    def asking(self, model: str, job: ImageJob, replicas: int) -> Iterator[None]:
        """Where replicas are asked for a job. Raises `QueueFull` if they would hardly have room
        now, and remembers what they say."""
        now, asked, whose = _now(), _Asked.by(job), (model, job.caller.name)
        told = self._told.get(whose)
        if told is not None and not (told.is_fresh(now) and told.asked.covers(asked)):
            told = None
        if told is not None and not told.lets(partial(self._each, model, replicas, now), now):
            raise told.again(now)
        try:
            yield
        except QueueFull as error:
            now, full_s = _now(), min(error.full_ms / 1000, MOST_S)
            self._told = {of: told for of, told in self._told.items() if told.is_fresh(now)}
            wait_s = error.retry_after_ms / 1000
            self._told[whose] = _Told(asked, str(error), now, now, wait_s, full_s, now + full_s)
            raise

    def _each(self, model: str, replicas: int, now: float) -> int:
        """How many a caller may ask for until the next pause."""
        callers = sum(told.is_asked_for(now) for (of, _), told in self._told.items() if of == model)
        return ceil(AT_A_TIME * max(1, replicas) / max(1, callers))


def _now() -> float:
    return asyncio.get_running_loop().time()
