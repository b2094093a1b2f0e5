"""The engine on a GPU, beside the card's own rates. Needs torch, but neither Ray nor weights.

    python -m benchmarks.gpu [--device cuda] [--quick] [--minutes 9] [--out out/bench-gpu.json]
                             [--family sdxl ...] [--only unet vae ...]

SDXL at 1024 pixels and SD 1.5 at 512, of the published geometry with random weights. Every
row is printed and saved when it has been measured; a section whose part of the time is over
is cut short, and says so.
"""

import argparse
import faulthandler
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import diffusers
import torch

from benchmarks.device import adapters, card, images, setup, timetable, traffic, unet, vae
from benchmarks.device.lab import Lab
from benchmarks.device.record import Record
from benchmarks.device.timetable import Section
from benchmarks.device.timing import FULL, QUICK, DeviceMemory
from benchmarks.report import machine
from configs.app import CompileMode, Dtype
from configs.families import FamilyName

FAMILIES: tuple[FamilyName, ...] = ("sdxl", "sd15")
SIDES = {"sdxl": "1024", "sd15": "512"}
IN_MEMORY, ROOM = Path("/dev/shm"), 24 * 2**30  # bytes for the models
GRACE_S = 20.0  # after the time for all, until a section that hangs is ended


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="models a few channels wide")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all, at most")
    parser.add_argument("--out", type=Path, default=Path("out/bench-gpu.json"))
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="such as card, unet, vae")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"))
    given = parser.parse_args()
    device = torch.device(given.device)
    dtype: Dtype = given.dtype or ("float32" if device.type == "cpu" else "float16")
    effort = QUICK if given.quick else FULL
    diffusers.logging.set_verbosity_error()
    if device.type == "cpu":
        torch.set_num_threads(1)  # as a replica with one CPU has it
    faulthandler.dump_traceback_later(given.minutes * 60 + GRACE_S, exit=True)
    with tempfile.TemporaryDirectory(dir=roomy_place()) as folder:
        lab = Lab(device, dtype, effort, Path(folder), tiny=given.quick)
        chosen = [
            section
            for section in sections(lab, given.family)
            if given.only is None or section.name in given.only
        ]
        if not chosen:
            names = ", ".join(dict.fromkeys(s.name for s in sections(lab, FAMILIES)))
            parser.error(f"--only names no section; there are: {names}")
        record = Record(given.out, about(device, dtype, tiny=given.quick))
        try:
            timetable.run(chosen, record, given.minutes * 60, DeviceMemory(device))
        finally:
            lab.close()
    faulthandler.cancel_dump_traceback_later()


def sections(lab: Lab, families: tuple[FamilyName, ...]) -> Iterator[Section]:
    """All that is measured, in order: what matters most comes first."""
    yield Section("card", "The card", 10, partial(card.rates, lab))
    for family in families:
        yield from _sections(lab, family, 1.0 if family == "sdxl" else 0.4)


def _sections(lab: Lab, family: FamilyName, scale: float) -> Iterator[Section]:
    off, *modes = compile_modes(lab.device)
    for name, title, seconds, rows in (
        ("unet", "the bare UNet", 20, partial(unet.bare, lab, family)),
        ("vae", "decoding", 30, partial(vae.decoding, lab, family)),
        ("setup", "making and loading it", 40, partial(setup.setup, lab, family)),
        ("steps", "steps of the engine", 25, partial(unet.steps, lab, family, off)),
        ("images", "whole images", 25, partial(images.images, lab, family, off)),
        ("loading", "loading adapters", 40, partial(adapters.loading, lab, family)),
        ("adapters", "adapters in use", 35, partial(adapters.use, lab, family)),
        ("traffic", "mixed traffic", 35, partial(traffic.traffic, lab, family)),
        ("cold", "cold adapters beside plain requests", 25, partial(adapters.cold, lab, family)),
        ("compiled", "the bare UNet, compiled", 60, partial(unet.compiled, lab, family)),
    ):
        yield Section(name, f"{family}: {title}", seconds * scale, rows)
    for mode in modes:
        for name, title, seconds, rows in (
            ("ready", "until it is ready", 90, partial(setup.ready, lab, family, mode)),
            ("steps", "steps of the engine", 25, partial(unet.steps, lab, family, mode)),
            ("images", "whole images", 20, partial(images.images, lab, family, mode)),
        ):
            yield Section(name, f"{family}: {title}, compile {mode}", seconds * scale, rows)


def compile_modes(device: torch.device) -> tuple[CompileMode, ...]:
    """What a model's `compile` may be there."""
    return ("off", "blocks", "graphs") if device.type == "cuda" else ("off", "blocks")


def roomy_place() -> Path | None:
    """Where some gigabytes of models are written fastest; `None`: the usual temporary folder."""
    roomy = IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > ROOM
    return IN_MEMORY if roomy else None


def about(device: torch.device, dtype: Dtype, *, tiny: bool) -> dict[str, str]:
    """What is true of all results."""
    sides = ", ".join(f"{family} {SIDES[family]}" for family in FAMILIES)
    told = {
        "models": "tiny stand-ins of the same classes" if tiny else f"random weights: {sides}",
        "device": str(device),
        "dtype": dtype,
        "machine": machine(),
        "versions": f"torch {torch.__version__}, diffusers {diffusers.__version__}",
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
    }
    if device.type == "cuda":
        card_ = torch.cuda.get_device_properties(device)
        told["card"] = f"{card_.name}, {card_.total_memory / 2**30:.0f} GiB"
    return told


if __name__ == "__main__":
    main()
