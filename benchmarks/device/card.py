"""The card's own rates, beside which all others are read."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from benchmarks.device.lab import Lab
from benchmarks.device.record import Row, rate
from benchmarks.device.timetable import Rows

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class CardRow(Row):
    """`rate`: TFLOP/s of a matrix product, TB/s of a copy, bytes read and written."""

    HEADER: ClassVar = ("what", "rate", "unit")
    what: str
    rate: float
    unit: str

    def cells(self) -> tuple[str, ...]:
        return self.what, rate(self.rate), self.unit


def rates(lab: Lab) -> Rows:
    """Matrix products of random numbers, and a copy within the device."""
    side, device = lab.effort.matmul_side, lab.device
    for dtype in DTYPES:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = lab.stopwatch.a_call(partial(torch.matmul, a, b))
        tflops = 2 * side**3 / seconds / 1e12
        lab.yardsticks.matmul_tflops[dtype] = tflops
        name = str(dtype).removeprefix("torch.")
        yield CardRow(f"{side} x {side} matrix product, {name}", tflops, "TFLOP/s")
    source = torch.randn(lab.effort.copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = lab.stopwatch.a_call(partial(target.copy_, source))
    yield CardRow("copy, read and written", 2 * source.nbytes / seconds / 1e12, "TB/s")
    host = torch.randn(lab.effort.copy_bytes // 16)
    pinned = host.pin_memory() if device.type == "cuda" else host
    for name, origin in (("pageable", host), ("pinned", pinned)):
        landed = torch.empty_like(host, device=device)
        seconds = lab.stopwatch.a_call(partial(landed.copy_, origin, non_blocking=True))
        yield CardRow(f"copy from the host, {name}", host.nbytes / seconds / 1e12, "TB/s")
