"""Carries out what `LoraCache` decides: loads beside the engine, moves between two steps."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from threading import Lock, Timer
from time import monotonic

import torch

from configs.sources import SourceChanged
from deployments.contracts.errors import GenerationFailed, InvalidRequest
from deployments.device import is_of_device, is_out_of_memory
from deployments.diffusion.engine.adapters.bank import Arrival, Bank
from deployments.diffusion.engine.adapters.cache import (
    Action,
    Attach,
    Detach,
    Discard,
    Load,
    LoraCache,
    Ready,
)
from deployments.diffusion.engine.adapters.files import LoraFile
from deployments.diffusion.engine.adapters.reader import LoraReader, LoraWeights
from deployments.diffusion.engine.adapters.sources import LoraSources, refusal
from deployments.diffusion.engine.policy.report import MOST_ADAPTERS, fingerprint
from deployments.diffusion.engine.policy.spec import LoraSource

MADE_AT_ONCE = 2  # adapters of their files: they share an interpreter
SLOW_AFTER_S = 0.25  # a load that takes longer keeps no other from being begun
REMEMBER_FAILURE_S = 10.0  # a source that failed is not asked again before
TELL_FAILURE_S = 60.0  # so long others are told, who may ask another replica


@dataclass(frozen=True)
class LoraRead:
    """A load ended: `weights` to hand to `LoraShelf.take`, or why there are none.

    Attributes:
        passing: it is so for this time alone.
    """

    key: str
    weights: LoraWeights | Exception
    passing: bool = False


@dataclass(frozen=True)
class LoraSlow:
    """A load takes long. To be handed to `LoraShelf.take`, too."""

    key: str


@dataclass(frozen=True)
class Settled:
    """A job's wait for its adapters is over: all are on the model, or `error` says why not."""

    job_id: str
    error: Exception | None = None


@dataclass(frozen=True)
class _Failure:
    error: Exception  # whoever raises it has a copy: it would hold on to their frames
    until: float  # on the clock of `time.monotonic`


class LoraShelf:
    """The style adapters of one checkpoint. Owned by the engine's thread.

    An adapter is read into (on a GPU: pinned) memory of the host and waits there until there is
    room for it within the budget; one copy on a stream of its own takes it to the device.

    Args:
        banks: by model name; they are given the adapters.
        deliver: called on other threads with what becomes of loads; must hand it to the engine's
            thread, which gives it to `take`.

    Attributes:
        loads, evictions: adapters that were begun to be read, and taken off the device, so far.
        fingerprints: of those on the device, the most recently used ones if a `Report` names fewer.
        failed: likewise of those that failed, and until when that is told, on the clock of
            `time.monotonic`.
    """

    def __init__(
        self,
        banks: Mapping[str, Bank],
        reader: LoraReader,
        origin: LoraSources,
        device: torch.device,
        budget_bytes: int,
        deliver: Callable[[LoraRead | LoraSlow], None],
    ) -> None:
        self._banks = banks
        self._reader = reader
        self._origin = origin
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._deliver = deliver
        self._cache = LoraCache(budget_bytes)
        self._sources: dict[str, LoraSource] = {}
        self._parked: dict[str, LoraWeights] = {}
        self._failures: dict[str, _Failure] = {}
        self._makers = ThreadPoolExecutor(MADE_AT_ONCE, thread_name_prefix="tcd-lora")
        self._closing = Lock()
        self._closed = False
        self.loads = 0
        self.evictions = 0
        self.failures = 0
        self.fingerprints: frozenset[int] = frozenset()
        self.failed: Mapping[int, float] = {}

    @property
    def resident(self) -> int:
        """Adapters on the device."""
        return len(self._cache.resident)

    @property
    def resident_bytes(self) -> int:
        """Their size."""
        return self._cache.resident_bytes

    def request(self, job_id: str, sources: Mapping[str, LoraSource]) -> list[Settled]:
        """A job needs these adapters: sources by key."""
        now = monotonic()
        self._failures = {k: f for k, f in self._failures.items() if f.until > now}
        for key in sources:
            if key in self._failures:
                return [Settled(job_id, copy(self._failures[key].error))]
        known = self._cache.known
        self._sources = {k: s for k, s in self._sources.items() if k in known} | dict(sources)
        return self._carry_out(self._cache.request(job_id, list(sources)))

    def take(self, read: LoraRead | LoraSlow) -> list[Settled]:
        """To be called with what `deliver` was given."""
        if isinstance(read, LoraSlow):
            return self._carry_out(self._cache.slow(read.key))
        if isinstance(read.weights, LoraWeights):
            self._parked[read.key] = read.weights
            return self._carry_out(self._cache.loaded(read.key, read.weights.nbytes))
        self.failures += 1
        if not read.passing:
            self._failures[read.key] = _Failure(read.weights, monotonic() + REMEMBER_FAILURE_S)
            self._tell_failure(read.key)
        victims, actions = self._cache.load_failed(read.key)
        settled = [Settled(job_id, copy(read.weights)) for job_id in victims]
        return settled + self._carry_out(actions)

    def release(self, job_id: str) -> list[Settled]:
        """A job needs its adapters no longer."""
        return self._carry_out(self._cache.release(job_id))

    def resize(self, budget_bytes: int) -> list[Settled]:
        """Takes a new budget."""
        return self._carry_out(self._cache.resize(budget_bytes))

    def close(self) -> None:
        """Nothing is delivered any more. Does not wait for sources."""
        with self._closing:
            self._closed = True
        self._makers.shutdown(wait=True, cancel_futures=True)

    def _carry_out(self, actions: list[Action]) -> list[Settled]:
        settled: list[Settled] = []
        for action in actions:
            match action:
                case Load(key):
                    self.loads += 1
                    self._load(key, self._sources[key])
                case Attach(key):
                    settled += self._attach(key)
                case Detach(key):
                    self.evictions += 1
                    for bank in self._banks.values():
                        bank.drop(key)
                case Discard(key):
                    del self._parked[key]
                case Ready(job_id):
                    settled.append(Settled(job_id))
                case _:
                    settled.append(Settled(action.job_id, self._too_large(action.needed)))
        if any(isinstance(action, Attach | Detach) for action in actions):
            self.fingerprints = here = self._fingerprints()
            self.failed = {one: at for one, at in self.failed.items() if one not in here}
        return settled

    def _tell_failure(self, key: str) -> None:
        source, now = self._sources[key], monotonic()
        told = {one: until for one, until in self.failed.items() if now < until}
        told.pop(_fingerprint(source), None)  # the last one stands at the end
        told[_fingerprint(source)] = now + TELL_FAILURE_S
        self.failed = dict(list(told.items())[-MOST_ADAPTERS:])

    def _fingerprints(self) -> frozenset[int]:
        sources = [self._sources[key] for key in self._cache.resident[-MOST_ADAPTERS:]]
        return frozenset(map(_fingerprint, sources))

    def _attach(self, key: str) -> list[Settled]:
        try:
            self._move(key, self._parked.pop(key))
            return []
        except Exception as error:
            if is_of_device(error):
                raise
            failure = error.with_traceback(None)  # which would keep what is there of these
        self.failures += 1
        self._tell_failure(key)
        for bank in self._banks.values():
            bank.drop(key)
        victims, actions = self._cache.attach_failed(key)
        refused = GenerationFailed(f"these loras cannot be brought to the device: {failure}")
        if is_out_of_memory(failure):
            refused = GenerationFailed("the device has too little memory for these loras")
        return [*(Settled(job_id, refused) for job_id in victims), *self._carry_out(actions)]

    def _move(self, key: str, weights: LoraWeights) -> None:
        """From the host to the device."""
        with torch.cuda.stream(self._stream):
            there = weights.to(self._device, non_blocking=True)
            layers = {model: self._banks[model].met(of) for model, of in there.layers.items()}
            arrival = None
            if self._stream is not None:
                arrival = Arrival(self._stream.record_event(), there.flat)
        for model, effects in layers.items():
            self._banks[model].hold(key, effects, arrival)

    def _load(self, key: str, source: LoraSource) -> None:
        """Always delivers, on another thread, whatever happens."""
        try:
            file = self._origin.bring(key, source)
        except Exception as error:
            self._deliver(LoraRead(key, refusal(source, error)))
            return
        slow = Timer(SLOW_AFTER_S, self._deliver, (LoraSlow(key),))
        slow.daemon = True
        slow.start()
        file.add_done_callback(lambda _: slow.cancel())
        file.add_done_callback(lambda brought: self._brought(key, source, brought))

    def _brought(self, key: str, source: LoraSource, file: "Future[LoraFile]") -> None:
        """On a thread that nobody waits for: a source has answered, or was given up."""
        with self._closing:
            if not self._closed:
                self._makers.submit(self._make, key, source, file)

    def _make(self, key: str, source: LoraSource, file: "Future[LoraFile]") -> None:
        try:
            self._deliver(LoraRead(key, self._reader.make(file.result(), source.unet)))
        except Exception as error:
            # A file that is put back is the same adapter again, and there.
            passing = isinstance(error, SourceChanged)
            self._deliver(LoraRead(key, refusal(source, error), passing))

    def _too_large(self, needed: int) -> InvalidRequest:
        return InvalidRequest(
            f"loras need {needed / 2**20:.1f} MiB together; this model keeps at most "
            f"{self._cache.budget_bytes / 2**20:.1f} MiB of them on its device",
            "loras",
        )


def _fingerprint(source: LoraSource) -> int:
    return fingerprint(source.unet, source.name)
