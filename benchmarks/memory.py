"""What a replica of a full-size model takes in memory. Results go to standard output, in markdown.

    python -m benchmarks.memory [--family sdxl] [--dtype float16] [--side 256] [--folder DIR]

A process of its own writes the model, with random weights of the published geometry; a fresh
one loads it into an engine, fuses a TCD-LoRA and draws two pictures of two steps, as a replica
would. The peak is held against the weights' size and what drawing needs.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import ParamSpec, TypeVar

import torch

from benchmarks.full_size import write_adapter, write_full_size
from benchmarks.report import machine, print_table
from configs.app import ModelArgs, ModelUserConfig
from configs.families import FamilyName
from deployments.contracts.jobs import ImageJob
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load

BAR = 1.15  # of the weights' size, to which comes what drawing needs
STEPS = 2
TCD_RANK = 64
GIB = 2**30
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CLEAR_PEAK = "5"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Resident:
    """Resident memory of a process so far, in bytes.

    Attributes:
        imported: after the imports, before anything is loaded.
        load_peak: the most while the model was loaded.
        first_peak: the most until the first picture was there: pages of weights that the
            files are mapped to come only when they are first read.
        at_rest: after it, `mapped` of it pages of files.
        second_peak: the most while a second picture was drawn.
    """

    imported: int
    load_peak: int
    first_peak: int
    at_rest: int
    mapped: int
    second_peak: int
    load_s: float
    picture_s: float

    @property
    def peak(self) -> int:
        """The most of all."""
        return max(self.first_peak, self.second_peak)

    @property
    def drawing(self) -> int:
        """What drawing needs beyond the model at rest."""
        return self.second_peak - self.at_rest

    def share(self, weights: int) -> float:
        """The peak without what drawing needs, of the weights' size."""
        return (self.peak - self.drawing) / weights


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("--family", default="sdxl", choices=("sd15", "sdxl"))
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--side", type=int, default=256, help="pixels a side")
    parser.add_argument("--tiny", action="store_true", help="a few channels wide")
    parser.add_argument("--no-tcd-lora", action="store_true", help="fuse none")
    parser.add_argument("--folder", type=Path, help="where the models are written, and stay")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        base, tcd_lora = folder / given.family, folder / f"tcd-{given.family}.safetensors"
        if not tcd_lora.exists():
            dtype = getattr(torch, given.dtype)
            in_fresh_process(write, base, tcd_lora, given.family, dtype, tiny=given.tiny)
        args = ModelArgs(
            name=given.family,
            family=given.family,
            checkpoint=str(base),
            tcd_lora=None if given.no_tcd_lora else str(tcd_lora),
            dtype=given.dtype,
            device="cpu",
        )
        weights = sum(file.stat().st_size for file in base.rglob("*.safetensors"))
        report(given, weights, in_fresh_process(serve, args, given.side))


def write(
    base: Path, tcd_lora: Path, family: FamilyName, dtype: torch.dtype, *, tiny: bool
) -> None:
    """Writes a base, and for its UNet a LoRA of the TCD-LoRA's rank."""
    write_full_size(base, family, dtype, tiny=tiny)
    write_adapter(tcd_lora, family, TCD_RANK, 0, text=False, dtype=dtype, tiny=tiny)


def in_fresh_process(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, done by a Python that has done nothing else."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
        return fresh.submit(work, *args, **kwargs).result()


def serve(args: ModelArgs, side: int) -> Resident:
    """Loads a model into an engine and draws two pictures; to be called in a fresh process."""
    imported, started = status("VmRSS"), perf_counter()
    engine = Engine(load(args), ModelUserConfig())
    try:
        load_s, load_peak = perf_counter() - started, status("VmHWM")
        engine.generate(picture("1", side))
        first_peak = status("VmHWM")
        CLEAR.write_text(CLEAR_PEAK)
        at_rest, mapped, started = status("VmRSS"), status("RssFile"), perf_counter()
        engine.generate(picture("2", side))
        return Resident(
            imported=imported,
            load_peak=load_peak,
            first_peak=first_peak,
            at_rest=at_rest,
            mapped=mapped,
            second_peak=status("VmHWM"),
            load_s=load_s,
            picture_s=perf_counter() - started,
        )
    finally:
        engine.stop()


def picture(name: str, side: int) -> ImageJob:
    """A request with a prompt of its own."""
    return ImageJob(name, f"a red fox {name}", (1,), side, side, num_inference_steps=STEPS)


def status(key: str) -> int:
    """A figure of this process, in bytes, as Linux tells it."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def report(given: argparse.Namespace, weights: int, memory: Resident) -> None:
    """Prints what was measured."""
    print(f"{machine()}; {given.family}, {given.dtype}, {STEPS} steps of {given.side} pixels\n")
    rows: list[tuple[str, int]] = [
        ("weights, files", weights),
        ("process, before it loads", memory.imported),
        (f"peak of loading ({memory.load_s:.0f} s)", memory.load_peak),
        ("peak of the first picture", memory.first_peak),
        ("at rest after it", memory.at_rest),
        ("of it pages of files", memory.mapped),
        (f"peak of the second picture ({memory.picture_s:.0f} s)", memory.second_peak),
        ("what drawing needs", memory.drawing),
    ]
    print_table(("", "GiB"), [(name, f"{size / GIB:.2f}") for name, size in rows])
    share = memory.share(weights)
    print(f"Peak without what drawing needs: {share:.2f} of the weights. The bar: {BAR:.2f}.")


if __name__ == "__main__":
    main()
