"""Which replica a job goes to. Policy only: no Ray, no torch, no clock of its own.

Everything is weighed in seconds. A replica costs what it has to do before the job, and what the job
would make it do anew: bring an adapter, encode a prompt. The cheapest of a few is taken: the homes
of the job's adapters on a ring, those that hold them and a few further ones (consistent hashing
with bounded loads: Mirrokni, Thorup and Zadimoghaddam, arXiv 1608.01350), and some at random (the
power of several choices), so that a decision costs the same among four replicas and thousands.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from deployments.diffusion.engine.policy.report import Report
from deployments.diffusion.routing.ring import Ring
from deployments.diffusion.routing.standing import Asked, Sent, Standing

HOMES = 4  # of an adapter beside those that hold it: the hotter it is, the more it has
MOST_HOMES = 64  # of an adapter that are looked at
SAMPLE = 8  # replicas looked at wherever adapters are at home; up to so many are all looked at
STRAY = 1 / 8  # of `load_s`: what each place further from an adapter's first home costs
MOST_TRIED = 4096  # jobs whose replicas are remembered
UNSENT_S = 30.0  # a call that was not sent by then will not be


@dataclass(frozen=True)
class Worth:
    """What is worth waiting for.

    Attributes:
        load_s: seconds for which a job would rather wait than have one adapter loaded for it. Also
            the most by which adapters may put a replica behind the others, each.
        prompt_s: likewise of an encoded prompt.
    """

    load_s: float = 1.0
    prompt_s: float = 0.02

    def __post_init__(self) -> None:
        """Raises ValueError for what is no time."""
        for name, value in (("load_s", self.load_s), ("prompt_s", self.prompt_s)):
            if isinstance(value, bool) or not 0 <= value <= 3600:
                raise ValueError(f"{name} is {value}; it must be 0 to 3600 seconds")

    def most_s(self, adapters: int) -> float:
        """How much more than the least busy replica that was looked at the chosen one may have to
        do."""
        if not adapters:
            return self.prompt_s
        return self.load_s * (adapters + STRAY * (HOMES + 1))


class Policy:
    """Chooses, and keeps in mind what it chose. Not thread-safe.

    Args:
        random: for the replicas that are looked at by chance, and between equals.
    """

    def __init__(self, worth: Worth, random: Random) -> None:
        self._worth = worth
        self._random = random
        self._ring = Ring()
        self._standings: dict[str, Standing] = {}
        self._names: list[str] = []
        self._pace = Report()  # the last that any replica reported
        self._unsent: OrderedDict[str, Sent] = OrderedDict()
        self._tried: OrderedDict[str, list[str]] = OrderedDict()

    def update(self, replicas: Collection[str]) -> None:
        """These are the replicas from now on. What is gone is forgotten."""
        kept = self._standings
        self._standings = {name: kept.get(name) or Standing() for name in replicas}
        self._names = list(self._standings)
        self._ring.update(self._names)

    def hear(self, replica: str, report: Report, now: float) -> None:
        """A replica says something else than before."""
        self._standings[replica].hear(report, now)
        self._pace = report

    def forget(self, replica: str) -> None:
        """It died."""
        if self._standings.pop(replica, None) is not None:
            self._names.remove(replica)
            self._ring.update(self._names)

    def pending_s(self, replica: str, now: float) -> float:
        """Seconds of work before a replica, as far as is known."""
        return self._standings[replica].pending_s(now, self._pace)

    def choose(self, asked: Asked, now: float) -> list[str]:
        """Replicas for a call, the best first, which is taken to get it until `sent` says
        otherwise. Those that were the best for the job before come last: they had it, or could not
        take it. Empty if there is no replica."""
        self._expire(now)
        if (before := self._unsent.pop(asked.key, None)) is not None:
            self._end(before)
        tried = self._tried.get(asked.key, ())
        costs = self._costs(asked, now, len(tried))
        ranked = sorted(costs, key=lambda name: (name in tried, costs[name], self._random.random()))
        if ranked:
            self._take(asked, ranked[0], now)
        return ranked

    def sent(self, asked: Asked, replica: str, now: float) -> None:
        """The replica has taken the call."""
        sent = self._unsent.pop(asked.key, None)
        if sent is not None and sent.replica != replica:
            self._end(sent)
            self._take(asked, replica, now)
            del self._unsent[asked.key]

    def done(self, replica: str, call: str) -> None:
        """A call of this id has ended there, whatever it came to."""
        standing = self._standings.get(replica)
        sent = None if standing is None else standing.oldest(call)
        if sent is not None:
            self._end(sent)
            if self._unsent.get(sent.asked.key) is sent:
                del self._unsent[sent.asked.key]

    def _take(self, asked: Asked, replica: str, now: float) -> None:
        if replica not in self._standings:
            return
        self._unsent[asked.key] = self._standings[replica].take(asked, replica, now)
        tried = self._tried.setdefault(asked.key, [])
        if replica not in tried:
            tried.append(replica)
        self._tried.move_to_end(asked.key)
        while len(self._tried) > MOST_TRIED:
            self._tried.popitem(last=False)

    def _end(self, sent: Sent) -> None:
        if (standing := self._standings.get(sent.replica)) is not None:
            standing.end(sent)

    def _expire(self, now: float) -> None:
        """Forgets what was chosen for calls that were given up before they were sent."""
        while self._unsent:
            sent = next(iter(self._unsent.values()))
            if now - sent.at < UNSENT_S:
                return
            del self._unsent[sent.asked.key]
            self._end(sent)

    def _costs(self, asked: Asked, now: float, tried: int) -> dict[str, float]:
        """Seconds by replica, of those that are looked at."""
        looked_at = self._sample(SAMPLE + tried)
        if not asked.adapters:
            home = None
            if asked.prompt is not None:
                home = next(self._ring.homes(asked.prompt), None)
            names = dict.fromkeys(looked_at if home is None else (home, *looked_at))
            return {
                name: self.pending_s(name, now) + (name != home) * self._worth.prompt_s
                for name in names
            }
        return self._styled(asked, [self._near(key, now) for key in asked.adapters], looked_at, now)

    def _near(self, adapter: int, now: float) -> list[str]:
        """Homes of an adapter, the nearest first, until so many do not hold it."""
        near: list[str] = []
        further = HOMES
        for name in islice(self._ring.homes(str(adapter)), MOST_HOMES):
            near.append(name)
            further -= not self._standings[name].holds(adapter, now)
            if not further:
                break
        return near

    def _sample(self, most: int) -> Sequence[str]:
        if len(self._names) <= most:
            return self._names
        return self._random.sample(self._names, most)

    def _styled(
        self, asked: Asked, homes: list[list[str]], looked_at: Sequence[str], now: float
    ) -> dict[str, float]:
        """Costs of the homes and the others, for a job with adapters."""
        names = dict.fromkeys(name for some in (*homes, looked_at) for name in some)
        return {
            name: self.pending_s(name, now)
            + self._worth.load_s * self._missing(asked, name, now)
            + self._worth.load_s * STRAY * self._distance(asked, name, homes)
            for name in names
        }

    def _distance(self, asked: Asked, replica: str, homes: list[list[str]]) -> float:
        """Places from the adapters' first homes, on average: 0 to `HOMES` where it is a home at
        all, else one more, as where the adapter failed."""
        standing, places = self._standings[replica], 0
        for adapter, some in zip(asked.adapters, homes, strict=True):
            at_home = replica in some and not standing.failed(adapter)
            places += min(some.index(replica), HOMES) if at_home else HOMES + 1
        return places / len(homes)

    def _missing(self, asked: Asked, replica: str, now: float) -> int:
        standing = self._standings[replica]
        return sum(not standing.holds(adapter, now) for adapter in asked.adapters)
