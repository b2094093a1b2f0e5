"""All numbers of a step, brought to the device by one copy that nobody waits for.

A copy from pageable memory waits for everything that the device still has to do; four of them
a step, and host and device never work at the same time.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


class Numbers:
    """The numbers of one step: put in one by one, uploaded together, then read on the device.

    All are float32 on the way: timesteps, indexes, weights and noise of a lower precision are
    exact in it.

    Args:
        device: where they are read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: list[Tensor] = []
        self._shapes: list[tuple[int, ...]] = []
        self._uploaded: list[Tensor] = []

    def put(self, values: Tensor | Sequence[float] | Sequence[Sequence[float]]) -> int:
        """Takes values of the host along; returns their place."""
        part = torch.as_tensor(values, dtype=torch.float32)
        self._parts.append(part.reshape(-1))
        self._shapes.append(tuple(part.shape))
        return len(self._parts) - 1

    def upload(self) -> None:
        """Starts the copy. The host may go on at once: the pinned memory is not used again
        before the copy is done (torch's allocator of pinned memory sees to that)."""
        sizes = [prod(shape) for shape in self._shapes]
        pinned = self._device.type == "cuda"
        whole = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=pinned)
        torch.cat(self._parts, out=whole)
        there = whole.to(self._device, non_blocking=True)
        parts = there.split(sizes)
        self._uploaded = [p.view(s) for p, s in zip(parts, self._shapes, strict=True)]

    def __getitem__(self, place: int) -> Tensor:
        """What was put there, on the device: float32, in the shape that it had."""
        return self._uploaded[place]
