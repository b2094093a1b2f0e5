"""Which style adapters are on the device: a byte-budget LRU with pins. Policy only: no torch.

A job names the adapters it needs. It becomes ready at the moment when all of them are
resident together; from then until `release` they are pinned and cannot be evicted. Jobs
wait in order of arrival, and what an older job waits for is never evicted for a younger
one: the oldest always gets on as soon as pins are released, so no two jobs can hold each
other's adapters for ever. While it waits for that, at most `PATIENCE` younger jobs become
ready: they could otherwise take turns in keeping an adapter pinned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PREFETCH = 4
PATIENCE = 16


@dataclass(frozen=True)
class Load:
    """Bring an adapter from its source; answer with `loaded` or `load_failed`."""

    key: str


@dataclass(frozen=True)
class Attach:
    """Put a loaded adapter on the model."""

    key: str


@dataclass(frozen=True)
class Detach:
    """Take an adapter off the model and forget it."""

    key: str


@dataclass(frozen=True)
class Discard:
    """Forget a loaded adapter that was never attached."""

    key: str


@dataclass(frozen=True)
class Ready:
    """All adapters of this job are attached and pinned."""

    job_id: str


@dataclass(frozen=True)
class TooLarge:
    """The adapters of this job do not fit the budget together; it has been released."""

    job_id: str
    needed: int


Action = Load | Attach | Detach | Discard | Ready | TooLarge


class LoraCache:
    """Decides; the engine carries out. Every method returns what to do, in order."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._resident: dict[str, int] = {}  # in order of use, the least recent first
        self._parked: dict[str, int] = {}  # loaded, not attached: no room yet
        self._loading: set[str] = set()
        self._slow: set[str] = set()  # of these
        self._waiting: dict[str, tuple[str, ...]] = {}
        self._pinned: dict[str, tuple[str, ...]] = {}
        self._overtaken: dict[str, int] = {}  # younger jobs made ready while it lacked room

    @property
    def known(self) -> set[str]:
        """Keys of the adapters that are here, on their way, or waited for."""
        waited = (key for keys in self._waiting.values() for key in keys)
        return {*self._resident, *self._parked, *self._loading, *waited}

    @property
    def resident(self) -> tuple[str, ...]:
        """Keys of the attached adapters, the least recently used first."""
        return tuple(self._resident)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the attached adapters; never above the budget."""
        return sum(self._resident.values())

    def request(self, job_id: str, keys: Sequence[str]) -> list[Action]:
        """A job needs these adapters, all at once."""
        self._waiting[job_id] = tuple(dict.fromkeys(keys))
        return self._settle()

    def loaded(self, key: str, nbytes: int) -> list[Action]:
        """A load ended well."""
        self._loading.discard(key)
        self._slow.discard(key)
        self._parked[key] = nbytes
        return self._settle()

    def slow(self, key: str) -> list[Action]:
        """A load takes long, maybe for ever: its place among those under way is free again."""
        if key in self._loading:
            self._slow.add(key)
        return self._settle()

    def load_failed(self, key: str) -> tuple[tuple[str, ...], list[Action]]:
        """A load ended badly. Returns the jobs that wanted it (released), and what to do."""
        self._loading.discard(key)
        self._slow.discard(key)
        victims = tuple(job for job, keys in self._waiting.items() if key in keys)
        for job_id in victims:
            self._forget(job_id)
        return victims, self._settle()

    def attach_failed(self, key: str) -> tuple[tuple[str, ...], list[Action]]:
        """What was to be attached could not be. Returns the jobs that wanted it (released), and
        what to do."""
        self._resident.pop(key, None)
        wanting = {**self._waiting, **self._pinned}
        victims = tuple(job for job, keys in wanting.items() if key in keys)
        for job_id in victims:
            self._forget(job_id)
            self._pinned.pop(job_id, None)
        return victims, self._settle()

    def release(self, job_id: str) -> list[Action]:
        """A job needs its adapters no longer, or gives up waiting for them."""
        self._forget(job_id)
        self._pinned.pop(job_id, None)
        return self._settle()

    def resize(self, budget_bytes: int) -> list[Action]:
        """A new budget; pinned adapters above it stay until they are released."""
        self.budget_bytes = budget_bytes
        return self._settle()

    def _settle(self) -> list[Action]:
        actions: list[Action] = []
        protected: set[str] = set()
        short_of_room: list[str] = []
        self._evict(0, protected, actions)
        for job_id, keys in list(self._waiting.items()):
            known = [self._resident.get(key, self._parked.get(key, 0)) for key in keys]
            if sum(known) > self.budget_bytes:
                self._forget(job_id)
                actions.append(TooLarge(job_id, sum(known)))
                continue
            protected |= set(keys)
            for key in keys:
                if key in self._parked:
                    self._attach(key, protected, actions)
                elif key not in self._resident and key not in self._loading:
                    self._load(key, actions)
            if all(key in self._resident for key in keys):
                self._forget(job_id)
                self._pinned[job_id] = keys
                for key in keys:
                    self._resident[key] = self._resident.pop(key)
                actions.append(Ready(job_id))
                for older in short_of_room:
                    self._overtaken[older] += 1
            elif any(key in self._parked for key in keys):
                short_of_room.append(job_id)
                if self._overtaken.setdefault(job_id, 0) >= PATIENCE:
                    break
        wanted = {key for keys in self._waiting.values() for key in keys}
        for key in [key for key in self._parked if key not in wanted]:
            del self._parked[key]
            actions.append(Discard(key))
        return actions

    def _forget(self, job_id: str) -> None:
        self._waiting.pop(job_id, None)
        self._overtaken.pop(job_id, None)

    def _load(self, key: str, actions: list[Action]) -> None:
        # The oldest waiting job may always load: a parked adapter of a younger one must
        # not be what keeps it waiting.
        oldest = next(iter(self._waiting.values()))
        under_way = len(self._loading) - len(self._slow) + len(self._parked)
        if under_way < PREFETCH or key in oldest:
            self._loading.add(key)
            actions.append(Load(key))

    def _attach(self, key: str, protected: set[str], actions: list[Action]) -> None:
        nbytes = self._parked[key]
        if self._evict(nbytes, protected, actions):
            del self._parked[key]
            self._resident[key] = nbytes
            actions.append(Attach(key))

    def _evict(self, room: int, protected: set[str], actions: list[Action]) -> bool:
        """Makes room, from the least recently used on; evicts nothing if that is not enough."""
        excess = self.resident_bytes + room - self.budget_bytes
        pinned = {key for keys in self._pinned.values() for key in keys}
        victims: list[str] = []
        for key, nbytes in self._resident.items():
            if excess <= 0:
                break
            if key not in pinned and key not in protected:
                victims.append(key)
                excess -= nbytes
        if excess > 0 and room > 0:
            return False
        for key in victims:
            del self._resident[key]
            actions.append(Detach(key))
        return True
