"""The project's router in virtual time, and Serve's own beside it."""

from collections.abc import Callable, Mapping
from random import Random
from typing import Protocol

from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.request_router.common import ReplicaQueueLengthCache

from benchmarks.fleet.replica import Replica
from deployments.diffusion.routing.policy import Policy, Worth
from deployments.diffusion.routing.standing import Asked

DEPLOYMENT = DeploymentID("Diffusion")


def identity(name: str) -> ReplicaID:
    """What Ray calls a replica of this name."""
    return ReplicaID(unique_id=name, deployment_id=DEPLOYMENT)


class Router(Protocol):
    """Chooses a replica for each call."""

    def update(self, replicas: Mapping[str, Replica]) -> None:
        """These are there from now on."""

    def hear(self) -> None:
        """Their reports have come."""

    def choose(self, asked: Asked, /) -> str | None:
        """Whom a call goes to; `None`: nobody is there."""

    def done(self, name: str, call: str, /) -> None:
        """A call has ended there."""


class ByWork:
    """The project's `Policy`."""

    def __init__(self, seed: int, now: Callable[[], float]) -> None:
        self._policy = Policy(Worth(), Random(seed))
        self._now = now
        self._replicas: Mapping[str, Replica] = {}

    def update(self, replicas: Mapping[str, Replica]) -> None:
        """These are there from now on."""
        self._replicas = dict(replicas)
        self._policy.update(list(replicas))

    def hear(self) -> None:
        """Their reports have come."""
        for name, replica in self._replicas.items():
            if replica.calls:
                self._policy.hear(name, replica.report(), self._now())

    def choose(self, asked: Asked, /) -> str | None:
        """Whom a call goes to."""
        names = self._policy.choose(asked, self._now())
        if not names:
            return None
        self._policy.sent(asked, names[0], self._now())
        return names[0]

    def done(self, name: str, call: str, /) -> None:
        """A call has ended there."""
        self._policy.done(name, call)


class OfTwo:
    """Serve's `PowerOfTwoChoicesRequestRouter` with its own cache of queue lengths. Simplified:
    probes take no time, no replica is nearer than another, and `max_ongoing_requests` is above
    `max_pending`, so that no replica turns a call away."""

    def __init__(self, seed: int, now: Callable[[], float]) -> None:
        self._random = Random(seed)
        self._replicas: Mapping[str, Replica] = {}
        self._names: list[str] = []
        self._lengths = ReplicaQueueLengthCache(get_curr_time_s=now)

    def update(self, replicas: Mapping[str, Replica]) -> None:
        """These are there from now on."""
        self._replicas = dict(replicas)
        self._names = list(replicas)
        self._lengths.remove_inactive_replicas(active_replica_ids=set(map(identity, replicas)))

    def hear(self) -> None:
        """It does not listen to reports."""

    def choose(self, _: Asked, /) -> str | None:
        """Of two at random the one with fewer requests, as far as is known; those of which nothing
        is known are asked, and count only if nothing is known of both."""
        two = self._random.sample(self._names, min(2, len(self._names)))
        if not two:
            return None
        known = {name: length for name in two if (length := self.length(name)) is not None}
        for name in two:
            if name not in known:
                self._lengths.update(identity(name), self._replicas[name].ongoing)
        lengths = known or {name: self._replicas[name].ongoing for name in two}
        chosen = min(lengths, key=lengths.__getitem__)
        # It answers with what it has, this call included.
        self._lengths.update(identity(chosen), self._replicas[chosen].ongoing + 1)
        return chosen

    def length(self, name: str) -> int | None:
        """Requests that a replica has, as far as is known."""
        return self._lengths.get(identity(name))

    def done(self, name: str, _: str, /) -> None:
        """A call has ended there."""
        if (length := self.length(name)) is not None:
            self._lengths.update(identity(name), max(0, length - 1))


ROUTERS: Mapping[str, Callable[[int, Callable[[], float]], Router]] = {
    "ours": ByWork,
    "Serve's": OfTwo,
}
