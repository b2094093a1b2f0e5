"""The UNet: bare, compiled, and in the engine's step loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.device.calls import unet_call, unet_flops
from benchmarks.device.lab import Lab
from benchmarks.device.record import Row, number, rate
from benchmarks.device.steady import WARM_UP_STEPS, steady
from benchmarks.device.timetable import Rows
from benchmarks.full_size import random_model
from configs.app import CompileMode
from configs.families import FamilyName

LAYOUTS = {"": torch.contiguous_format, ", channels-last": torch.channels_last}
RECOMPILATIONS = 64  # by default some 8, and then silently none


@dataclass(frozen=True)
class UNetRow(Row):
    """A call of the UNet, or a step of the engine with as many rows.

    Attributes:
        tflops: per second, counting the UNet's operations alone.
        of_card: that, as a share of the card's own matrix product in the same dtype.
        beyond_bare_ms: what a call takes more than the bare eager one.
    """

    HEADER: ClassVar = (
        "model", "what", "batch", "ms", "rows/s", "TFLOP/s", "of the card's", "beyond bare, ms",
    )  # fmt: skip
    model: FamilyName
    what: str
    batch: int
    ms: float
    rows_s: float
    tflops: float
    of_card: float | None
    beyond_bare_ms: float | None

    def cells(self) -> tuple[str, ...]:
        return (
            self.model,
            self.what,
            str(self.batch),
            number(self.ms, 2),
            number(self.rows_s),
            rate(self.tflops),
            number(self.of_card, 2),
            number(self.beyond_bare_ms, 2),
        )


def bare(lab: Lab, family: FamilyName) -> Rows:
    """Eager calls, in torch's usual memory layout and channels-last."""
    unet = _unet(lab, family)
    for layout, memory_format in LAYOUTS.items():
        unet.to(memory_format=memory_format)
        for batch in lab.effort.batches:
            seconds = lab.stopwatch.a_call(_call(lab, unet, family, batch))
            if not layout:
                lab.yardsticks.call_s[family, batch] = seconds
            yield _row(lab, family, f"bare{layout}", batch, seconds)


def compiled(lab: Lab, family: FamilyName) -> Rows:
    """Calls with the repeated blocks compiled, anew for each batch size."""
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    unet = _unet(lab, family)
    unet.compile_repeated_blocks(fullgraph=True, dynamic=False)
    for batch in lab.effort.compiled:
        seconds = lab.stopwatch.a_call(_call(lab, unet, family, batch))
        yield _row(lab, family, "bare, blocks compiled", batch, seconds)


def steps(lab: Lab, family: FamilyName, mode: CompileMode) -> Rows:
    """Steps of the engine while all rows of a batch run."""
    engine = lab.engine(family, mode)
    for batch in lab.effort.batches if mode == "off" else lab.effort.compiled:
        for count in (WARM_UP_STEPS, lab.effort.steps):
            seconds = steady(engine, [lab.job(family, count) for _ in range(batch)])
        yield _row(lab, family, f"engine, compile {mode}", batch, seconds)


def _unet(lab: Lab, family: FamilyName) -> UNet2DConditionModel:
    lab.close()
    return random_model(UNet2DConditionModel, lab.geometry(family).unet, lab.device, lab.dtype)


def _call(
    lab: Lab, unet: UNet2DConditionModel, family: FamilyName, batch: int
) -> Callable[[], Tensor]:
    return unet_call(unet, lab.geometry(family).side, batch, lab.device, lab.dtype)


def _row(lab: Lab, family: FamilyName, what: str, batch: int, seconds: float) -> UNetRow:
    tflops = batch * unet_flops(family, tiny=lab.tiny) / seconds / 1e12
    card = lab.yardsticks.matmul_tflops.get(lab.dtype)
    call_s = lab.yardsticks.call_s.get((family, batch))
    return UNetRow(
        model=family,
        what=what,
        batch=batch,
        ms=seconds * 1e3,
        rows_s=batch / seconds,
        tflops=tflops,
        of_card=None if card is None else tflops / card,
        beyond_bare_ms=None if call_s is None else (seconds - call_s) * 1e3,
    )
