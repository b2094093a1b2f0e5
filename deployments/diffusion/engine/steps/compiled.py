"""UNet calls as CUDA graphs: one for each number of rows and shape, over buffers of its own.

A graph is launched at once, where an eager call is launched kernel by kernel. What a call reads is
copied into the graph's buffers; what it has fewer rows than these is filled with its first row
and cut off the output. Rows do not see each other in a UNet, so nobody's numbers depend on that.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from deployments.device import is_out_of_memory
from deployments.diffusion.engine.steps.conditioning import UNetInput

# Rows for which there are graphs. Closer than powers of two: from four rows of 1024 x 1024 on an
# H100 is busy, and five in a graph of eight would take longer than eager.
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
CALLS_BEFORE = 3  # in which libraries set themselves up, before one is captured
Call = Callable[[UNetInput], Tensor]
Kind = tuple[object, ...]
log = logging.getLogger("tcd.engine")


class Captured(NamedTuple):
    """A call that can be made again: `replay` reads the same inputs and writes `output` anew."""

    replay: Callable[[], None]
    output: Tensor


Capture = Callable[[Callable[[], Tensor]], Captured]


class CudaCapture:
    """Captures calls on a CUDA device. All graphs share their memory: one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[[], Tensor]) -> Captured:
        """Runs a call, then captures it. Whatever happens, the current stream is the same after."""
        current = torch.cuda.current_stream(self._stream.device)
        with torch.cuda.stream(current):
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(CALLS_BEFORE):
                    call()
            current.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Of this thread alone: others may allocate and launch meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                output = call()
        return Captured(graph.replay, output)


class _Graph(NamedTuple):
    buffers: UNetInput
    captured: Captured


class Graphs:
    """The graphs of one UNet. One thread at a time.

    Args:
        call: the UNet; what else it reads (adapters, pictures, residuals) must be off.

    Attributes:
        learning: calls of kinds that are not held are captured. For the time before requests
            come: capturing stops the device and takes memory for good.
        failures: captures that failed. After one that lacked anything but memory, none is tried.
        replays: calls that were made by a graph.
    """

    def __init__(self, call: Call, capture: Capture) -> None:
        self._call = call
        self._capture = capture
        self._held: dict[Kind, _Graph] = {}
        self._given_up = False
        self.learning = False
        self.failures = 0
        self.replays = 0

    def __len__(self) -> int:
        return len(self._held)

    def run(self, given: UNetInput) -> Tensor | None:
        """What the UNet says, (B, C, h, w), by a graph; `None` if there is none for such a call."""
        rows = len(given.sample)
        bucket = bucket_of(rows)
        if bucket is None:
            return None
        kind = _kind(given, bucket)
        if kind not in self._held and self.learning and not self._given_up:
            self._learn(given, kind, bucket)
        graph = self._held.get(kind)
        if graph is None:
            return None
        _fill(graph.buffers, given)
        graph.captured.replay()
        self.replays += 1
        # The next replay, of whichever graph, may write there.
        return graph.captured.output[:rows].clone()

    def _learn(self, given: UNetInput, kind: Kind, bucket: int) -> None:
        buffers = _like(given, bucket)
        _fill(buffers, given)
        try:
            self._held[kind] = _Graph(buffers, self._capture(lambda: self._call(buffers)))
        except Exception as error:  # if the device itself is broken, the call without shows it
            self.failures += 1
            self._given_up = not is_out_of_memory(error)
            log.warning("a call of %d rows cannot be captured", bucket, exc_info=error)


def bucket_of(rows: int) -> int | None:
    """The smallest of `BUCKETS` with room for so many rows; `None` if there is none."""
    place = bisect_left(BUCKETS, rows)
    return BUCKETS[place] if place < len(BUCKETS) else None


def buckets_up_to(rows: int) -> list[int]:
    """Those that calls of up to so many rows need."""
    most = bucket_of(rows)
    return [bucket for bucket in BUCKETS if most is None or bucket <= most]


def _tensors(given: UNetInput) -> Iterator[Tensor]:
    yield from (given.sample, given.timesteps, given.hidden)
    yield from (given.added or {}).values()


def _kind(given: UNetInput, bucket: int) -> Kind:
    return (bucket, *((tensor.shape[1:], tensor.dtype) for tensor in _tensors(given)))


def _like(given: UNetInput, rows: int) -> UNetInput:
    """Buffers with so many rows."""

    def buffer(tensor: Tensor) -> Tensor:
        return tensor.new_empty(rows, *tensor.shape[1:])

    added = given.added
    return UNetInput(
        buffer(given.sample),
        buffer(given.timesteps),
        buffer(given.hidden),
        None if added is None else {name: buffer(tensor) for name, tensor in added.items()},
    )


def _fill(buffers: UNetInput, given: UNetInput) -> None:
    rows = len(given.sample)
    for buffer, tensor in zip(_tensors(buffers), _tensors(given), strict=True):
        buffer[:rows].copy_(tensor)
        buffer[rows:].copy_(tensor[:1].expand(len(buffer) - rows, *tensor.shape[1:]))
