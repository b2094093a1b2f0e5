"""Carries out what `LoraCache` decides: loads beside the engine, attaches between two steps."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

from configs.sources import SourceError, SourceUnavailable, fetch
from deployments.contracts.errors import GenerationFailed, InvalidRequest, NotReady
from deployments.diffusion.engine.adapters.cache import (
    Action,
    Attach,
    Detach,
    Discard,
    Load,
    LoraCache,
    Ready,
)
from deployments.diffusion.engine.adapters.reader import LoraError, LoraWeights
from deployments.diffusion.engine.models.components import Components


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
class LoraSource:
    """Where an adapter comes from, and which UNet it goes to: "unet" or "motion_unet"."""

    source: str
    unet: str = "unet"

    def key(self, name: str) -> str:
        """The key of an adapter: another source under the same name is another adapter."""
        digest = sha256(f"{self.unet} {self.source}".encode()).hexdigest()[:8]
        return f"{name.replace('.', '_')}-{digest}"


class LoraShelf:
    """The style adapters of one model. Owned by the engine's thread.

    Args:
        deliver: called on the loading thread with each load's end; must hand it to the
            engine's thread, which gives it to `take`.
    """

    def __init__(
        self, components: Components, budget_bytes: int, deliver: Callable[[LoraRead], None]
    ) -> None:
        self._parts = components
        self._deliver = deliver
        self._cache = LoraCache(budget_bytes)
        self._sources: dict[str, LoraSource] = {}
        self._parked: dict[str, LoraWeights] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tcd-lora")
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
        self._sources |= sources
        return self._carry_out(self._cache.request(job_id, list(sources)))

    def take(self, read: LoraRead) -> list[Settled]:
        """A load has ended; to be called with what `deliver` was given."""
        if isinstance(read.weights, LoraWeights):
            self._parked[read.key] = read.weights
            return self._carry_out(self._cache.loaded(read.key, read.weights.nbytes))
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
        """Waits for the load under way, drops the others."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _carry_out(self, actions: list[Action]) -> list[Settled]:
        settled: list[Settled] = []
        for action in actions:
            match action:
                case Load(key):
                    self.loads += 1
                    self._thread.submit(self._load, key, self._sources[key])
                case Attach(key):
                    weights = self._parked.pop(key)
                    for name, layers in weights.layers.items():
                        self._parts.lora_stacks[name].attach(key, layers)
                case Detach(key):
                    self.evictions += 1
                    for stack in self._parts.lora_stacks.values():
                        stack.detach(key)
                case Discard(key):
                    del self._parked[key]
                case Ready(job_id):
                    settled.append(Settled(job_id))
                case _:
                    settled.append(Settled(action.job_id, self._too_large(action.needed)))
        return settled

    def _load(self, key: str, source: LoraSource) -> None:
        """On the loading thread: always delivers, whatever happens."""
        name = key.rpartition("-")[0]
        try:
            self._deliver(LoraRead(key, self._read(key, source)))
        except SourceUnavailable as error:
            self._deliver(LoraRead(key, NotReady(f"lora {name!r}: {error}")))
        except (LoraError, SourceError) as error:
            self._deliver(LoraRead(key, InvalidRequest(f"lora {name!r}: {error}", "loras")))
        except Exception as error:
            self._deliver(LoraRead(key, GenerationFailed(f"lora {key!r} could not load: {error}")))

    def _read(self, key: str, source: LoraSource) -> LoraWeights:
        return self._parts.lora_reader.read(fetch(source.source), key, source.unet)

    def _too_large(self, needed: int) -> InvalidRequest:
        return InvalidRequest(
            f"loras need {needed / 2**20:.1f} MiB together; this model keeps at most "
            f"{self._cache.budget_bytes / 2**20:.1f} MiB of them on its device",
            "loras",
        )
