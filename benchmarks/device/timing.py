"""How long calls take on a device whose work is queued."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from benchmarks.device.timetable import Memory

WARM_UP = 3


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds, round_s: a call is timed in so many rounds of about so many seconds.
        batches: of UNet calls.
        compiled: those of compiled ones: each is compiled for itself.
        vae_batches: of VAE calls.
        steps: of each row in the steady state of the step loop.
        images: drawn one after the other to time one alone.
        window_s: traffic is counted for so long, once it has settled.
        adapters, cold_adapters: that are in use, and that are loaded beside other requests.
        matmul_side, copy_bytes: of the card's own rates.
    """

    rounds: int
    round_s: float
    batches: tuple[int, ...]
    compiled: tuple[int, ...]
    vae_batches: tuple[int, ...]
    steps: int
    images: int
    window_s: float
    adapters: int
    cold_adapters: int
    matmul_side: int
    copy_bytes: int


FULL = Effort(
    rounds=5,
    round_s=0.15,
    batches=(1, 2, 4, 8),
    compiled=(1, 4, 8),
    vae_batches=(1, 2, 4),
    steps=36,
    images=8,
    window_s=7.0,
    adapters=16,
    cold_adapters=12,
    matmul_side=8192,
    copy_bytes=2**31,
)
QUICK = Effort(
    rounds=2,
    round_s=0.02,
    batches=(1, 2, 4, 8),
    compiled=(1,),
    vae_batches=(1, 2, 4),
    steps=16,
    images=3,
    window_s=1.5,
    adapters=4,
    cold_adapters=3,
    matmul_side=512,
    copy_bytes=2**24,
)


@dataclass(frozen=True)
class Stopwatch:
    """Times calls on a device, in seconds."""

    device: torch.device
    effort: Effort

    def a_call(self, call: Callable[[], object]) -> float:
        """Of calls queued one behind the other: the median over rounds, after a warm-up."""
        for _ in range(WARM_UP):
            call()
        once = self._round(call, 1)
        calls = max(1, round(self.effort.round_s / once))
        return median(self._round(call, calls) / calls for _ in range(self.effort.rounds))

    def _round(self, call: Callable[[], object], calls: int) -> float:
        self.wait()
        started = perf_counter()
        for _ in range(calls):
            call()
        self.wait()
        return perf_counter() - started

    def wait(self) -> None:
        """Until the device has done all that was queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class DeviceMemory(Memory):
    """What PyTorch allocates on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return None
