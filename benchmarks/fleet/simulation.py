"""One model's replicas, its routers and its autoscaler, while requests come."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from random import Random

from benchmarks.fleet.clock import Clock
from benchmarks.fleet.device import H100, Device
from benchmarks.fleet.replica import Replica
from benchmarks.fleet.routers import ROUTERS
from benchmarks.fleet.scaling import Autoscaler
from benchmarks.fleet.traces import Arrival
from configs.app import Limits
from deployments.contracts.errors import QueueFull
from deployments.contracts.jobs import ImageJob
from deployments.diffusion.routing.standing import Asked
from deployments.ingress.request.elsewhere import MOST_ASKED

REPORTS_S = 2.0  # `request_routing_stats_period_s`
DECISIONS_S = 1.0
START_S = 60.0  # of a new replica: assumed


@dataclass
class Outcome:
    """What came of the requests.

    Attributes:
        took: seconds of those that were answered: plain ones, and those with an adapter.
        loads: of adapters.
        replica_s: seconds for which devices were held; `busy_s`: in which they worked.
        targets: of the autoscaler, when it changed its mind.
    """

    asked: int = 0
    answered: int = 0
    refused: int = 0
    plain: list[float] = field(default_factory=list)
    adapted: list[float] = field(default_factory=list)
    loads: int = 0
    rows: int = 0
    calls: int = 0
    busy_s: float = 0.0
    replica_s: float = 0.0
    ups: int = 0
    downs: int = 0
    targets: list[tuple[float, int]] = field(default_factory=list)

    @property
    def took(self) -> list[float]:
        """All together."""
        return self.plain + self.adapted

    def add(self, other: "Outcome") -> None:
        """Another model's, too; the autoscalers' targets are left out."""
        self.asked += other.asked
        self.answered += other.answered
        self.refused += other.refused
        self.loads += other.loads
        self.rows += other.rows
        self.calls += other.calls
        self.ups += other.ups
        self.downs += other.downs
        self.busy_s += other.busy_s
        self.replica_s += other.replica_s
        self.plain += other.plain
        self.adapted += other.adapted


class Simulation:
    """Runs once.

    Args:
        clock: of several that run side by side.
        router: one of `ROUTERS`.
        routers: processes that have one each; every request comes to one of them at random.
        replicas: how many there are, at first if there is an autoscaler.
    """

    def __init__(
        self,
        *,
        router: str,
        replicas: int,
        limits: Limits,
        autoscaler: Autoscaler | None = None,
        device: Device = H100,
        routers: int = 4,
        seed: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or Clock()
        self._random = Random(seed)
        self._routers = [
            ROUTERS[router](seed + number, lambda: self._clock.now) for number in range(routers)
        ]
        self._device, self._limits, self._autoscaler = device, limits, autoscaler
        self._numbers = count()
        self._serving: dict[str, Replica] = {}
        self._starting: dict[str, float] = {}  # since when
        self._leaving: list[Replica] = []
        self._open = 0
        self._ended = False
        self.outcome = Outcome()
        for _ in range(replicas):
            self._add(f"replica-{next(self._numbers)}", 0.0)
        self._tell_routers()

    def run(self, trace: Iterator[Arrival]) -> Outcome:
        """Until every request has been answered or refused."""
        self.begin(trace)
        while not self.done and self._clock.step():
            pass
        return self.end()

    def begin(self, trace: Iterator[Arrival]) -> None:
        """Requests come from now on."""
        self._clock.after(0.0, partial(self._next, trace))
        self._clock.after(REPORTS_S, self._report)
        if self._autoscaler is not None:
            self._clock.after(self._autoscaler.config.metrics_interval_s, self._tell)
            self._clock.after(DECISIONS_S, self._decide)

    @property
    def done(self) -> bool:
        """Whether every request has been answered or refused."""
        return self._ended and not self._open

    def end(self) -> Outcome:
        """Counts what there is."""
        for replica in (*self._serving.values(), *self._leaving):
            self._count(replica)
        self.outcome.replica_s += sum(self._clock.now - at for at in self._starting.values())
        if self._autoscaler is not None:
            self.outcome.ups, self.outcome.downs = self._autoscaler.ups, self._autoscaler.downs
        return self.outcome

    def _next(self, trace: Iterator[Arrival]) -> None:
        arrival = next(trace, None)
        if arrival is None:
            self._ended = True
            return
        self._clock.after(arrival.at - self._clock.now, partial(self._come, arrival, trace))

    def _come(self, arrival: Arrival, trace: Iterator[Arrival]) -> None:
        self.outcome.asked += 1
        self._open += 1
        self._send(arrival.job, self._random.randrange(len(self._routers)))
        self._next(trace)

    def _send(self, job: ImageJob, number: int) -> None:
        """Asks up to `MOST_ASKED` replicas, as the ingress does."""
        router, came = self._routers[number], self._clock.now
        for attempt in range(MOST_ASKED):
            call = f"{job.job_id}/{attempt}"
            name = router.choose(Asked.of(job, call))
            if name is None:
                break
            try:
                self._serving[name].submit(
                    job, partial(self._answered, job, came, number, name, call)
                )
            except QueueFull:
                router.done(name, call)
                job = replace(job, refused_elsewhere=True)
                continue
            return
        self.outcome.refused += 1
        self._open -= 1

    def _answered(self, job: ImageJob, came: float, number: int, name: str, call: str) -> None:
        self._routers[number].done(name, call)
        self.outcome.answered += 1
        self._open -= 1
        kind = self.outcome.adapted if job.loras else self.outcome.plain
        kind.append(self._clock.now - came)

    def _report(self) -> None:
        for router in self._routers:
            router.hear()
        self._clock.after(REPORTS_S, self._report)

    def _tell(self) -> None:
        assert self._autoscaler is not None
        self._autoscaler.hear(self._serving)
        self._clock.after(self._autoscaler.config.metrics_interval_s, self._tell)

    def _decide(self) -> None:
        assert self._autoscaler is not None
        before, target = self._autoscaler.target, self._autoscaler.decide(self._clock.now)
        if target != before:
            self.outcome.targets.append((self._clock.now, target))
        while len(self._serving) + len(self._starting) < target:
            name = f"replica-{next(self._numbers)}"
            self._starting[name] = self._clock.now
            self._clock.after(START_S, partial(self._serve, name))
        while len(self._serving) + len(self._starting) > target:
            self._end()
        for replica in [one for one in self._leaving if not one.ongoing]:
            self._leaving.remove(replica)
            self._count(replica)
        self._clock.after(DECISIONS_S, self._decide)

    def _serve(self, name: str) -> None:
        """A new replica is ready, unless it was not needed any more."""
        if name in self._starting:
            self._add(name, self._starting.pop(name))
            self._tell_routers()

    def _add(self, name: str, born: float) -> None:
        self._serving[name] = Replica(name, self._clock, self._device, self._limits, born)

    def _end(self) -> None:
        """One less: one that is only starting, else the one with the fewest requests."""
        if self._starting:
            name = next(reversed(self._starting))
            self.outcome.replica_s += self._clock.now - self._starting.pop(name)
            return
        name = min(self._serving, key=lambda one: self._serving[one].ongoing)
        self._leaving.append(self._serving.pop(name))
        self._tell_routers()

    def _tell_routers(self) -> None:
        for router in self._routers:
            router.update(self._serving)

    def _count(self, replica: Replica) -> None:
        """A replica's figures, when its device is given back or all is over."""
        self.outcome.loads += replica.shelf.loads
        self.outcome.rows += replica.rows
        self.outcome.calls += replica.calls
        self.outcome.busy_s += replica.busy_s
        self.outcome.replica_s += self._clock.now - replica.born
