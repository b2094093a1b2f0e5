"""Carries out what `LoraCache` decides: loads beside the engine, moves between two steps."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import BoundedSemaphore
from time import monotonic

import torch

from configs.sources import SourceError, SourceUnavailable, fetch
from deployments.contracts.errors import GenerationFailed, InvalidRequest, NotReady
from deployments.diffusion.engine.adapters.bank import Arrival, Bank
from deployments.diffusion.engine.adapters.cache import (
    PREFETCH,
    Action,
    Attach,
    Detach,
    Discard,
    Load,
    LoraCache,
    Ready,
)
from deployments.diffusion.engine.adapters.reader import LoraError, LoraReader, LoraWeights
from deployments.diffusion.engine.policy.spec import LoraSource

READS = 2  # at once: they share an interpreter, and a disk that hangs must not hold up all
REMEMBER_FAILURE_S = 10.0  # a source that failed is not asked again before


@dataclass(frozen=True)
class LoraRead:
    """A load ended: `weights` to hand to `LoraShelf.take`, or why there are none."""

    key: str
    weights: LoraWeights | Exception


@dataclass(frozen=True)
class Settled:
    """A job's wait for its adapters is over: all are on the model, or `error` says why not."""

    job_id: str
    error: Exception | None = None


@dataclass(frozen=True)
class _Failure:
    error: Exception
    until: float  # on the clock of `time.monotonic`


class LoraShelf:
    """The style adapters of one checkpoint. Owned by the engine's thread.

    An adapter is read into (on a GPU: pinned) memory of the host and waits there until there is
    room for it within the budget; one copy on a stream of its own takes it to the device.

    Args:
        banks: by model name; they are given the adapters.
        deliver: called on a loading thread with each load's end; must hand it to the engine's
            thread, which gives it to `take`.
    """

    def __init__(
        self,
        banks: Mapping[str, Bank],
        reader: LoraReader,
        device: torch.device,
        budget_bytes: int,
        deliver: Callable[[LoraRead], None],
    ) -> None:
        self._banks = banks
        self._reader = reader
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._deliver = deliver
        self._cache = LoraCache(budget_bytes)
        self._sources: dict[str, LoraSource] = {}
        self._parked: dict[str, LoraWeights] = {}
        self._failures: dict[str, _Failure] = {}
        self._threads = ThreadPoolExecutor(PREFETCH, thread_name_prefix="tcd-lora")
        self._reading = BoundedSemaphore(READS)
        self.loads = 0
        self.evictions = 0

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
                return [Settled(job_id, self._failures[key].error)]
        self._sources = {k: s for k, s in self._sources.items() if k in self._cache} | dict(sources)
        return self._carry_out(self._cache.request(job_id, list(sources)))

    def take(self, read: LoraRead) -> list[Settled]:
        """A load has ended; to be called with what `deliver` was given."""
        if isinstance(read.weights, LoraWeights):
            self._parked[read.key] = read.weights
            return self._carry_out(self._cache.loaded(read.key, read.weights.nbytes))
        self._failures[read.key] = _Failure(read.weights, monotonic() + REMEMBER_FAILURE_S)
        victims, actions = self._cache.load_failed(read.key)
        settled = [Settled(job_id, read.weights) for job_id in victims]
        return settled + self._carry_out(actions)

    def release(self, job_id: str) -> list[Settled]:
        """A job needs its adapters no longer."""
        return self._carry_out(self._cache.release(job_id))

    def resize(self, budget_bytes: int) -> list[Settled]:
        """Takes a new budget."""
        return self._carry_out(self._cache.resize(budget_bytes))

    def close(self) -> None:
        """Waits for the loads under way, drops the others."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _carry_out(self, actions: list[Action]) -> list[Settled]:
        settled: list[Settled] = []
        for action in actions:
            match action:
                case Load(key):
                    self.loads += 1
                    self._threads.submit(self._load, key, self._sources[key])
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
        return settled

    def _attach(self, key: str) -> list[Settled]:
        try:
            self._move(key, self._parked.pop(key))
        except torch.OutOfMemoryError:
            victims, actions = self._cache.attach_failed(key)
            error = GenerationFailed("the device has too little memory for these loras")
            return [*(Settled(job_id, error) for job_id in victims), *self._carry_out(actions)]
        return []

    def _move(self, key: str, weights: LoraWeights) -> None:
        """From the host to the device."""
        with torch.cuda.stream(self._stream):
            there = weights.to(self._device, non_blocking=True)
            arrival = None
            if self._stream is not None:
                arrival = Arrival(self._stream.record_event(), there.flat)
        for model, layers in there.layers.items():
            self._banks[model].hold(key, layers, arrival)

    def _load(self, key: str, source: LoraSource) -> None:
        """On a loading thread: always delivers, whatever happens."""
        name = key.rpartition("-")[0]
        try:
            self._deliver(LoraRead(key, self._read(source)))
        except SourceUnavailable as error:
            self._deliver(LoraRead(key, NotReady(f"lora {name!r}: {error}")))
        except (LoraError, SourceError) as error:
            self._deliver(LoraRead(key, InvalidRequest(f"lora {name!r}: {error}", "loras")))
        except Exception as error:
            self._deliver(LoraRead(key, GenerationFailed(f"lora {key!r} could not load: {error}")))

    def _read(self, source: LoraSource) -> LoraWeights:
        path = fetch(source.source)
        with self._reading:
            return self._reader.read(path, source.unet)

    def _too_large(self, needed: int) -> InvalidRequest:
        return InvalidRequest(
            f"loras need {needed / 2**20:.1f} MiB together; this model keeps at most "
            f"{self._cache.budget_bytes / 2**20:.1f} MiB of them on its device",
            "loras",
        )
