"""What the processes hold while they work, what is left when they rest, and what grows."""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import httpx
import ray
from prometheus_client.parser import text_string_to_metric_families

from tests.soak.ledger import middle
from tests.soak.processes import Process, Use, processes, use

MB = 2**20
PERIOD_S = 5.0
WARM_UP_S = 60.0  # of each process, in which it loads what it needs
FEWEST = 9  # samples of a process that can be judged
# What must be nothing when nobody asks for anything.
AT_REST = (
    "tcd_engine_pending_images",
    "tcd_engine_running_rows",
    "tcd_engine_pending_steps",
    "tcd_engine_decoding_images",
    "tcd_key_running",
    "tcd_key_waiting",
)


@dataclass(frozen=True)
class Sample:
    """One look. `at`: seconds of the ledger. `figures`: of `/metrics`, all labels summed; empty
    while it does not answer."""

    at: float
    uses: Mapping[Process, Use]
    store_bytes: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Growth:
    """How one quantity of one process stood in the first and in the last third of its life.

    Attributes:
        of: the process, or "object store".
        bound: what the last third's median may be.
    """

    of: str
    quantity: str
    first: float
    last: float
    bound: float

    @property
    def flat(self) -> bool:
        """Whether it has not grown beyond the bound."""
        return self.last <= self.bound


class Sampler:
    """Looks every few seconds, in a thread of its own."""

    def __init__(self, url: str, now: Callable[[], float]) -> None:
        self._url = url
        self._now = now
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.samples: list[Sample] = []

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def look(self) -> Sample:
        """One sample."""
        held = {process: use(process) for process in processes()}
        uses = {process: one for process, one in held.items() if one is not None}
        return Sample(self._now(), uses, store_bytes(), figures(self._url))

    def _sample(self) -> None:
        while not self._done.wait(PERIOD_S):
            self.samples.append(self.look())


def figures(url: str) -> dict[str, float]:
    """`/metrics`, each figure summed over its labels; empty if it does not answer."""
    try:
        answer = httpx.get(f"{url}/metrics", timeout=10)
        if answer.status_code != 200:
            return {}
    except httpx.HTTPError:
        return {}
    sums: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            sums[sample.name] += sample.value
    return dict(sums)


def store_bytes() -> int:
    """Bytes in the cluster's object store, as the nodes last said it."""
    name = "object_store_memory"
    whole, free = ray.cluster_resources(), ray.available_resources()
    return int(whole[name] - free[name]) if name in free else 0


def busy(sample: Sample) -> dict[str, float]:
    """What is not at rest; all of it unknown, if `/metrics` did not answer."""
    if not sample.figures:
        return dict.fromkeys(AT_REST, float("nan"))
    return {name: sample.figures[name] for name in AT_REST if sample.figures.get(name)}


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Of every process that lived long enough, and of the object store."""
    found: list[Growth] = []
    lives: dict[Process, list[tuple[float, Use]]] = defaultdict(list)
    for sample in samples:
        for process, held in sample.uses.items():
            lives[process].append((sample.at, held))
    for process, life in sorted(lives.items()):
        warm = [held for at, held in life if at - life[0][0] >= WARM_UP_S]
        if len(warm) < FEWEST:
            continue
        name = f"{process.kind} {process.pid}"
        found += [
            _growth(name, "memory, MB", [held.memory / MB for held in warm], 50),
            _growth(name, "handles", [held.handles for held in warm], 20),
            _growth(name, "threads", [held.threads for held in warm], 10),
        ]
    store = [s.store_bytes / MB for s in samples if s.at - samples[0].at >= WARM_UP_S]
    if len(store) >= FEWEST:
        found.append(_growth("object store", "memory, MB", store, 50))
    return found


def _growth(of: str, quantity: str, values: Sequence[float], more: float) -> Growth:
    """A tenth and `more` is what it may grow by."""
    third = len(values) // 3
    first, last = middle(values[:third]), middle(values[-third:])
    return Growth(of, quantity, first, last, 1.1 * first + more)
