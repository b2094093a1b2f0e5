"""Decoding: the VAE by batch, dtype and memory layout."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import AutoencoderKL

from benchmarks.device.calls import vae_call, vae_flops
from benchmarks.device.lab import Lab
from benchmarks.device.record import Row, number, rate
from benchmarks.device.timetable import Rows
from benchmarks.full_size import random_model
from configs.families import FamilyName

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


@dataclass(frozen=True)
class VaeRow(Row):
    """A call of the decoder. `finite`: whether random weights stay in the dtype's range."""

    HEADER: ClassVar = ("model", "dtype", "layout", "batch", "ms an image", "TFLOP/s", "finite")
    model: FamilyName
    dtype: str
    layout: str
    batch: int
    ms_an_image: float
    tflops: float
    finite: bool

    def cells(self) -> tuple[str, ...]:
        return (
            self.model,
            self.dtype,
            self.layout,
            str(self.batch),
            number(self.ms_an_image, 2),
            rate(self.tflops),
            "yes" if self.finite else "no",
        )


def decoding(lab: Lab, family: FamilyName) -> Rows:
    """Bare calls of a picture's size."""
    lab.close()
    shapes = lab.geometry(family)
    side = shapes.side // 8
    flops = vae_flops(family, tiny=lab.tiny)
    for dtype in DTYPES:
        vae = random_model(AutoencoderKL, shapes.vae, lab.device, dtype)
        for layout, memory_format in LAYOUTS.items():
            vae.to(memory_format=memory_format)
            for batch in lab.effort.vae_batches:
                latents = torch.randn(batch, 4, side, side, device=lab.device, dtype=dtype)
                call = vae_call(vae, latents.to(memory_format=memory_format))
                seconds = lab.stopwatch.a_call(call) / batch
                yield VaeRow(
                    model=family,
                    dtype=str(dtype).removeprefix("torch."),
                    layout=layout,
                    batch=batch,
                    ms_an_image=seconds * 1e3,
                    tflops=flops / seconds / 1e12,
                    finite=bool(call().isfinite().all()),
                )
