"""What was asked, and how it ended: every request is entered when it is sent, and closed once."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

Outcome = Literal["answered", "cancelled", "refused", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("answered", "cancelled", "refused", "failed")


@dataclass(frozen=True)
class Ending:
    """How one request ended.

    Attributes:
        shape: what kind of refusal or failure it was, in few words; empty of an answer.
        detail: what was said.
        request_id: the service's `x-request-id`, where one came.
    """

    outcome: Outcome
    shape: str = ""
    detail: str = ""
    request_id: str = ""


@dataclass
class Entry:
    """A line of the ledger. Times are seconds since it was opened."""

    kind: str
    asked_at: float
    ended_at: float | None = None
    ending: Ending | None = None

    @property
    def seconds(self) -> float:
        """How long it took. Asked of ended ones only."""
        assert self.ended_at is not None
        return self.ended_at - self.asked_at


@dataclass
class Account:
    """One kind's sums. `shapes`: how often each refusal and failure came."""

    asked: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of answers

    @property
    def balanced(self) -> bool:
        """asked = answered + cancelled + refused + failed."""
        return self.asked == sum(self.outcomes[outcome] for outcome in OUTCOMES)


class Ledger:
    """The entries of one run; callers in any thread."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._asked: Counter[str] = Counter()
        self.entries: list[Entry] = []

    def now(self) -> float:
        """Seconds since the ledger was opened."""
        return time.monotonic() - self._began

    def asked(self, kind: str) -> Entry:
        """A request is about to be sent."""
        entry = Entry(kind, self.now())
        with self._lock:
            self._asked[kind] += 1
            self.entries.append(entry)
        return entry

    def ended(self, entry: Entry, ending: Ending) -> None:
        """It has ended. Raises ValueError if it had ended before: one request, one end."""
        with self._lock:
            if entry.ending is not None:
                raise ValueError(f"{entry.kind} ended twice: {entry.ending}, then {ending}")
            entry.ended_at, entry.ending = self.now(), ending

    def accounts(self) -> dict[str, Account]:
        """The sums by kind. What has not ended is asked and nothing else."""
        accounts: dict[str, Account] = defaultdict(Account)
        with self._lock:
            for kind, count in self._asked.items():
                accounts[kind].asked = count
            for entry in self.entries:
                if entry.ending is None:
                    continue
                account = accounts[entry.kind]
                account.outcomes[entry.ending.outcome] += 1
                if entry.ending.shape:
                    account.shapes[entry.ending.shape] += 1
                if entry.ending.outcome == "answered":
                    account.seconds.append(entry.seconds)
        return dict(sorted(accounts.items()))

    def of(self, outcome: Outcome) -> list[Entry]:
        """The entries that ended so."""
        with self._lock:
            return [e for e in self.entries if e.ending is not None and e.ending.outcome == outcome]


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which this share of the values lies; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def middle(values: Iterable[float]) -> float:
    """The median; 0 of none."""
    known = list(values)
    return median(known) if known else 0.0
