"""Callers that send mixed requests all the while, some of whom go away; bursts of them at times."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.soak.asking import Asker, some_leaving
from tests.soak.kinds import Kinds

STREAMS = ("stream",)


@dataclass(frozen=True)
class Load:
    """How hard it is.

    Attributes:
        callers: each with one request at a time.
        pause_s: between a caller's requests, at most.
        leaving: the share of requests whose client goes away.
        burst_every_s, burst: so many requests at once at times; half of them leave.
    """

    callers: int = 4
    pause_s: float = 0.4
    leaving: float = 0.15
    burst_every_s: float = 25.0
    burst: int = 16


class Crowd:
    """The callers of one run. Call `stop`, then await `run`.

    Args:
        kinds: of each key's holder; every request is one of theirs by chance.
    """

    def __init__(self, asker: Asker, kinds: Sequence[Kinds], load: Load, seed: int) -> None:
        self._asker = asker
        self._load = load
        self._seed = seed
        self._tables = [one.table() for one in kinds]
        self._weights = {kind: weight for kind, (weight, _) in self._tables[0].items()}
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Until it is stopped; then each caller ends what it has begun."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._load.callers):
                group.create_task(self._call(random.Random(self._seed * 1000 + number)))
            group.create_task(self._bursts(random.Random(self._seed * 1000 + 999)))

    def stop(self) -> None:
        """Nothing new is asked any more."""
        self._stopped.set()

    async def one(self, draw: random.Random, leaving: float) -> None:
        """One request of any kind."""
        (kind,) = draw.choices(list(self._weights), list(self._weights.values()))
        await self.of_kind(kind, draw, leaving)

    async def of_kind(self, kind: str, draw: random.Random, leaving: float = 0.0) -> None:
        """One request of this kind; with a probability of `leaving` its client goes away."""
        leaves = draw.random() < leaving
        gone = some_leaving(draw, kind in STREAMS) if leaves else None
        await draw.choice(self._tables)[kind][1](self._asker, draw, gone)

    async def burst(self, draw: random.Random, count: int, leaving: float) -> None:
        """Many at once."""
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self.one(random.Random(draw.random()), leaving))

    async def _call(self, draw: random.Random) -> None:
        while not self._stopped.is_set():
            await self.one(draw, self._load.leaving)
            await self._rest(draw.random() * self._load.pause_s)

    async def _bursts(self, draw: random.Random) -> None:
        while not self._stopped.is_set():
            await self._rest(self._load.burst_every_s)
            if not self._stopped.is_set():
                await self.burst(draw, self._load.burst, 0.5)

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            pass
