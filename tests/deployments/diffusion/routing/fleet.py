"""Replicas in virtual time under the real routing policy: each has one device, and an LRU of
adapters."""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import count
from random import Random

from deployments.diffusion.engine.policy.report import Report
from deployments.diffusion.routing.policy import Policy, Worth
from deployments.diffusion.routing.standing import Asked

STEP_PIXEL_S = 1e-5
DECODE_PIXEL_S = 1e-6
NUMBERS = count()


def asked(*adapters: int, seconds: float = 0.1, prompt: str = "a", key: str = "") -> Asked:
    """A job of so many seconds."""
    number = next(NUMBERS)
    pixels = round(seconds / STEP_PIXEL_S)
    return Asked(key or f"job-{number}", f"call-{number}", pixels, 0, adapters, prompt)


@dataclass
class Replica:
    """One replica as it is.

    Attributes:
        room: adapters on its device.
        free: when it will have done all it has.
        jobs: until when each lasts, in order.
        broken: adapters that do not load there.
        failed: those of them that were asked for.
    """

    name: str
    room: int
    free: float = 0.0
    loads: int = 0
    rows: int = 0
    reports: bool = True
    adapters: "OrderedDict[int, None]" = field(default_factory=OrderedDict)
    jobs: "deque[tuple[float, Asked]]" = field(default_factory=deque)
    broken: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)

    def report(self, now: float) -> Report:
        """What it says of itself."""
        pending_s, held = max(0.0, self.free - now), frozenset(self.adapters)
        failed = frozenset(self.failed)
        return Report(pending_s, STEP_PIXEL_S, DECODE_PIXEL_S, self.rows, held, failed)


class Fleet:
    """Replicas with one router before them.

    Args:
        load_s: how long an adapter's loading holds a replica up.
    """

    def __init__(
        self,
        replicas: int,
        *,
        room: int = 1000,
        load_s: float = 0.0,
        worth: Worth | None = None,
        seed: int = 0,
    ) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self.policy = Policy(worth or Worth(), Random(seed))
        self.replicas: dict[str, Replica] = {}
        self._room = room
        self._load_s = load_s
        self._numbers = count()
        for _ in range(replicas):
            self.add()

    def add(self, *, reports: bool = True) -> Replica:
        """One more."""
        name = f"replica-{next(self._numbers)}"
        self.replicas[name] = Replica(name, self._room, free=self.now, reports=reports)
        self.policy.update(list(self.replicas))
        return self.replicas[name]

    def remove(self, name: str) -> None:
        """It is gone, with all it had."""
        del self.replicas[name]
        self.policy.update(list(self.replicas))

    def send(self, job: Asked, name: str | None = None) -> Replica:
        """A job goes where the policy says, or to the replica of this name."""
        name = name or self.policy.choose(job, self.now)[0]
        self.policy.sent(job, name, self.now)
        replica = self.replicas[name]
        begun = max(self.now, replica.free)
        replica.failed |= replica.broken & set(job.adapters)
        if replica.broken & set(job.adapters):  # refused, and so done
            self.policy.done(name, job.call)
            return replica
        for adapter in job.adapters:
            if adapter not in replica.adapters:
                replica.loads += 1
                begun += self._load_s
            replica.adapters[adapter] = None
            replica.adapters.move_to_end(adapter)
            while len(replica.adapters) > replica.room:
                replica.adapters.popitem(last=False)
        replica.free = begun + job.unet_pixels * STEP_PIXEL_S
        replica.jobs.append((replica.free, job))
        return replica

    def wait(self, seconds: float) -> None:
        """Time passes; what is done is told."""
        self.now += seconds
        for replica in self.replicas.values():
            while replica.jobs and replica.jobs[0][0] <= self.now:
                _, job = replica.jobs.popleft()
                replica.rows += 1
                self.policy.done(replica.name, job.call)

    def report(self) -> None:
        """Everybody reports who does at all."""
        for replica in self.replicas.values():
            if replica.reports:
                self.policy.hear(replica.name, replica.report(self.now), self.now)

    @property
    def loads(self) -> int:
        """Adapters loaded so far, by those that are there."""
        return sum(replica.loads for replica in self.replicas.values())
