"""Two servers that take turns under the same load."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from benchmarks.peers.load import Load, Taken
from benchmarks.peers.processes import asleep, cpu_between, memory_mib, seen
from benchmarks.peers.settings import Name
from benchmarks.peers.traffic import Kind
from benchmarks.report import percentile

WARM_UP_S = 1.5


class Contestant(Protocol):
    """What can be put under load."""

    @property
    def name(self) -> Name: ...

    @property
    def pid(self) -> int: ...

    def taken(self, load: Load) -> Taken:
        """What comes of a load."""


@dataclass(frozen=True)
class Turn:
    """One contestant under one load.

    Attributes:
        burst_s: until a burst's last image, the median.
        cpu_s: an image, by process.
        client_cpu_s: an image, of the load generator.
        memory_mib: by process, afterwards.
    """

    images_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    burst_s: float | None
    images: int
    cpu_s: dict[str, float]
    client_cpu_s: float
    memory_mib: dict[str, float]

    @property
    def all_cpu_s(self) -> float:
        """An image, all processes of the server together."""
        return sum(self.cpu_s.values())


@dataclass
class Match:
    """Ours and one other, turn by turn."""

    scale: int
    kind: Kind
    clients: int
    other: Name
    ours: list[Turn] = field(default_factory=list)
    theirs: list[Turn] = field(default_factory=list)


@dataclass(frozen=True)
class Pace:
    """How long turns are, and how many."""

    seconds: float
    repetitions: int


def play(match: Match, ours: Contestant, other: Contestant, pace: Pace) -> None:
    """Fills the match. Each repetition has requests of its own, the same for both; whose turn it is
    not stands still."""
    for one in (ours, other):
        one.taken(Load(match.kind, match.clients, WARM_UP_S, 0, seed=-2))
    for repetition in range(pace.repetitions):
        load = Load(match.kind, match.clients, pace.seconds, match.clients, repetition)
        with asleep(other.pid):
            match.ours.append(turn(ours, load))
        with asleep(ours.pid):
            match.theirs.append(turn(other, load))


def turn(contestant: Contestant, load: Load) -> Turn:
    """One load, and what the contestant's processes took for it."""
    before = seen(contestant.pid)
    taken = contestant.taken(load)
    cpu = cpu_between(before, seen(contestant.pid))
    images = len(taken.latencies_s)
    return Turn(
        taken.window_images / taken.window_s,
        percentile(taken.latencies_s, 0.5),
        percentile(taken.latencies_s, 0.95),
        percentile(taken.latencies_s, 0.99),
        median(taken.bursts_s) if taken.bursts_s else None,
        images,
        {role: seconds / images for role, seconds in cpu.items()},
        taken.cpu_s / images,
        memory_mib(contestant.pid),
    )


@dataclass(frozen=True)
class Rest:
    """CPU of one server that nobody asks, in ms a second, by process."""

    scale: int
    name: Name
    cpu_ms_s: dict[str, float]


def at_rest(scale: int, contestants: list[Contestant], seconds: float) -> Iterator[Rest]:
    """All at the same time."""
    before = [seen(one.pid) for one in contestants]
    started = time.perf_counter()
    time.sleep(seconds)
    after = [seen(one.pid) for one in contestants]
    took = time.perf_counter() - started
    for one, first, last in zip(contestants, before, after, strict=True):
        spent = cpu_between(first, last)
        yield Rest(scale, one.name, {role: cpu * 1e3 / took for role, cpu in spent.items()})
