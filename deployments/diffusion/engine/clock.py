"""Times steps on the device that makes them, which on a GPU is later than they are launched."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from deployments.diffusion.engine.policy.batch import BatchKey, Measured


class _HostClock:
    """Times a step on a device that does it at once."""

    def __init__(self) -> None:
        self._started = perf_counter()

    def stop(self) -> Callable[[], float]:
        """The step is done; what is returned says how many seconds it took."""
        seconds = perf_counter() - self._started
        return lambda: seconds


class _DeviceClock:
    """Times a step on a GPU, which does it later."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._started = self._stream.record_event(torch.cuda.Event(enable_timing=True))

    def stop(self) -> Callable[[], float]:
        """The step has been launched; what is returned waits for its end, and says how many
        seconds it took."""
        ended = self._stream.record_event(torch.cuda.Event(enable_timing=True))

        def wait() -> float:
            ended.synchronize()
            return float(self._started.elapsed_time(ended)) / 1e3

        return wait


def clock_of(device: torch.device) -> _HostClock | _DeviceClock:
    """A clock that runs, for a step on this device."""
    return _DeviceClock(device) if device.type == "cuda" else _HostClock()


@dataclass(frozen=True)
class InFlight:
    """A step that has been launched. `seconds` waits for its end, and says what it took."""

    key: BatchKey
    unet_rows: int
    seconds: Callable[[], float]

    def wait(self) -> Measured:
        """Returns when it is done."""
        return Measured(self.key, self.unet_rows, self.seconds())
