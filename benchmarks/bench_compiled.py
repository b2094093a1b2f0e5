"""Compiled blocks on the CPU: how fast beside eager ones, and how long until they are compiled.

    python -m benchmarks.bench_compiled [--scale 1 4] [--rounds 8]

Both models live in one process and are called in turn; each start is a process of its own, twice
with the same cache.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time

import torch

from benchmarks.models import SIDE, Model, write_model
from benchmarks.pipeline import quiet_libraries
from benchmarks.report import machine, print_table, quartiles, ratios
from configs.app import ModelArgs, ModelUserConfig, WarmSize
from deployments.diffusion.engine.adapters.bank import RowWeights
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import Components, load

ROWS = (1, 8)
WARM_UP = 2  # calls before those that are timed


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_compiled")
    parser.add_argument("--scale", type=int, nargs="+", default=(1, 4), help="widths of the UNet")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--start", help=argparse.SUPPRESS)  # a child's: the model's arguments
    given = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    if given.start is not None:
        print(json.dumps(start(ModelArgs.model_validate_json(given.start))))
        return
    print(f"{machine()}, one torch thread\n")
    with tempfile.TemporaryDirectory() as folder:
        for scale in given.scale:
            model = write_model(Path(folder) / str(scale), scale)
            print(f"### UNet x{scale}\n")
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / f"cache-{scale}")
            print_starts(model)
            print_speed(model, given.rounds)


def warmed(model: Model) -> ModelArgs:
    """The model compiled, its size drawn beforehand."""
    size = WarmSize(width=SIDE, height=SIDE)
    return model.args.model_copy(update={"compile": "blocks", "warmup": (size,)})


def start(args: ModelArgs) -> tuple[float, float, int]:
    """Seconds to load a model and warm it up, on the clock and of this process's CPU time (the C++
    compiler's processes not counted), and how many kinds of blocks were compiled."""
    begun, worked = perf_counter(), process_time()
    engine = Engine(load(args), ModelUserConfig())
    took, work = perf_counter() - begun, process_time() - worked
    compiles = engine.figures().compiles_total
    engine.stop()
    return took, work, compiles


def print_starts(model: Model) -> None:
    """How long a replica takes to start, with an empty cache and with a full one."""
    rows: list[tuple[str, ...]] = []
    off = model.args.model_copy(update={"warmup": warmed(model).warmup})
    for name, args in (("off", off), ("cold", warmed(model)), ("warm", warmed(model))):
        command = [sys.executable, "-m", "benchmarks.bench_compiled"]
        done = subprocess.run(
            [*command, "--start", args.model_dump_json()], capture_output=True, check=True
        )
        took, work, compiles = json.loads(done.stdout.splitlines()[-1])
        rows.append((name, f"{took:.1f}", f"{work:.1f}", str(compiles)))
    print_table(("cache", "a start, s", "its CPU time, s", "kinds compiled"), rows)


def print_speed(model: Model, rounds: int) -> None:
    """UNet calls, eager and compiled in turn."""
    eager, compiled = load(model.args), load(warmed(model))
    for parts in (eager, compiled):
        for name, file in model.loras.items():
            layers = parts.lora_reader.read(Path(file)).layers["unet"]
            bank = parts.banks["unet"]
            bank.hold(name, bank.met(layers))
    table: list[tuple[str, ...]] = []
    for styles in ((), tuple(model.loras)):
        for rows in ROWS:
            mix: list[RowWeights] = [dict.fromkeys(styles, 0.5), *[{}] * (rows - 1)]
            times: tuple[list[float], list[float]] = [], []
            for turn in range(WARM_UP + rounds):
                for parts, kept in zip((eager, compiled), times, strict=True):
                    seconds = call(parts, mix)
                    if turn >= WARM_UP:
                        kept.append(seconds)
            table.append(
                (
                    f"{len(styles)} in use",
                    str(rows),
                    *(quartiles([1e3 * s for s in kept], 1) for kept in times),
                    quartiles(ratios(*times)),
                )
            )
    print_table(("style LoRAs", "rows", "eager, ms", "compiled, ms", "eager : compiled"), table)


def call(parts: Components, mix: Sequence[RowWeights]) -> float:
    """Seconds of a UNet call."""
    rows, bank = len(mix), parts.banks["unet"]
    source = torch.Generator().manual_seed(rows)
    with torch.inference_mode():
        bank.weigh(torch.tensor(bank.mix(mix)))
        sample = torch.randn(rows, 4, SIDE // 8, SIDE // 8, generator=source)
        hidden = torch.randn(rows, 77, parts.unet.config.cross_attention_dim, generator=source)
        started = perf_counter()
        parts.unet(
            sample,
            torch.linspace(999, 19, rows),
            encoder_hidden_states=hidden,
            return_dict=False,
        )
        return perf_counter() - started


if __name__ == "__main__":
    main()
