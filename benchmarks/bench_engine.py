"""The engine against what it is made of. Results go to standard output, in markdown.

    python -m benchmarks.bench_engine [--quick]

Three questions: what the step loop costs beside the UNet calls that it makes, what style adapters
cost it, and how long a mixed load takes beside one diffusers pipeline that answers one request
after the other.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from benchmarks.adapter_cost import (
    PLAIN_STEPS,
    measure_in_use,
    measure_loads,
    measure_reading,
    p95,
    write_cold,
)
from benchmarks.adapter_cost import STEPS_BY_BATCH as STEPS_IN_USE
from benchmarks.bare import BarePipeline
from benchmarks.full_size import write_adapter
from benchmarks.mixed_load import AT_A_TIME, REQUESTS, mixed_jobs, run_rounds
from benchmarks.models import STYLES, Model, write_model
from benchmarks.pipeline import quiet_libraries
from benchmarks.report import machine, print_table, quartiles, ratios, spread
from benchmarks.step_loop import Turns, step_jobs, take_turns
from configs.app import ModelUserConfig
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from deployments.diffusion.engine.models.skeletons import skeletons

BAR = 0.97  # of the bare loop's rows per second
SLOW_ENOUGH_MS = 20.0  # forward at batch 1, from which on the bar counts
STEP_LOOP_SCALE = 2  # just above that on one core: a wider UNet would hide the loop's cost
MIXED_SCALES = (1, 2)
STEPS_BY_BATCH = {1: 46, 4: 26, 8: 20}  # for about equal times
WARM_UP_STEPS = 8
COLD_A_REQUEST = 3  # never-seen adapters for each plain request beside them, more than enough


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_engine")
    parser.add_argument("--quick", action="store_true", help="measure everything once only")
    quick: bool = parser.parse_args().quick
    quiet_libraries()
    torch.set_num_threads(1)  # as a replica with one CPU has it; both sides alike
    print(f"{machine()}, one torch thread\n")
    with tempfile.TemporaryDirectory() as folder:
        models = {scale: write_model(Path(folder) / str(scale), scale) for scale in MIXED_SCALES}
        bench_step_loop(models[STEP_LOOP_SCALE], 1 if quick else 2)
        bench_adapters(models[STEP_LOOP_SCALE], Path(folder), quick=quick)
        bench_mixed_load(list(models.values()), 1 if quick else 3)


@contextmanager
def running_engine(model: Model) -> Iterator[Engine]:
    """An engine with the usual limits, which allow a batch of eight."""
    engine = Engine(load(model.args), ModelUserConfig(loras=model.loras))
    try:
        yield engine
    finally:
        engine.stop()


def bench_step_loop(model: Model, repetitions: int) -> None:
    """Prints the engine's rows per second as a share of a bare loop's."""
    results: list[tuple[str, int, Turns]] = []
    with running_engine(model) as engine:
        pipeline = BarePipeline(model)
        for batch in STEPS_BY_BATCH:
            turns = measure_steps(engine, pipeline, batch, repetitions, styles=False)
            results.append(("none loaded", batch, turns))
        unused = BarePipeline(model)
        pipeline.load_styles()
        pipeline.weigh(dict.fromkeys(STYLES, 0.5))
        for batch in STEPS_BY_BATCH:
            turns = measure_steps(engine, pipeline, batch, repetitions, styles=True)
            results.append(("three in use", batch, turns))
        turns = measure_steps(engine, unused, 1, repetitions, styles=False)
        results.append(("three loaded, none in use", 1, turns))
    print("### Step loop\n")
    print_table(
        (
            "style LoRAs",
            "batch",
            "call, ms",
            "step, ms",
            "engine : bare",
            "by CPU time",
            "end to end",
        ),
        [
            (
                styles,
                str(batch),
                f"{turns.call_s * 1e3:.1f}",
                f"{turns.step_s * 1e3:.1f}",
                quartiles(turns.ratios),
                quartiles(turns.cpu_ratios),
                f"{turns.end_to_end:.2f}",
            )
            for styles, batch, turns in results
        ],
    )
    clock = min(median(turns.ratios) for _, _, turns in results)
    cpu = min(median(turns.cpu_ratios) for _, _, turns in results)
    print(
        f"Lowest ratio: {clock:.3f} by the clock, {cpu:.3f} by CPU time. The bar: {BAR:.2f}, for "
        f"a forward of {SLOW_ENOUGH_MS:.0f} ms and more at batch 1.\n"
    )


def bench_adapters(model: Model, folder: Path, *, quick: bool) -> None:
    """Prints what adapters cost: in use, while others load, and to read."""
    print("### Style adapters\n")
    rows: list[tuple[str, ...]] = []
    with running_engine(model) as engine:
        for batch in STEPS_IN_USE:
            used = measure_in_use(engine, batch, 2 if quick else 7)
            none, three = median(used.none_s), median(used.three_s)
            times = ratios(used.three_s, used.none_s)
            rows.append((str(batch), f"{none * 1e3:.1f}", f"{three * 1e3:.1f}", quartiles(times)))
    print_table(("batch", "no adapter, ms a step", "three in use, ms", "three : none"), rows)

    requests, rounds = (20, 1) if quick else (60, 3)
    cold = write_cold(model, folder, rounds * requests * COLD_A_REQUEST)
    with running_engine(replace(model, loras=model.loras | cold)) as engine:
        beside = measure_loads(engine, list(cold), rounds, requests)
    warm_s, cold_s = p95(beside.warm_s), p95(beside.cold_s)
    print(
        f"Plain requests of {PLAIN_STEPS} steps, p95: {warm_s * 1e3:.0f} ms beside a client whose "
        f"adapter is warm, {cold_s * 1e3:.0f} ms beside one whose adapter is never the same "
        f"({beside.loads} loads): {cold_s / warm_s:.2f}.\n"
    )

    for tiny, what in ((True, "a few channels wide"), (False, "full size")):
        file = folder / f"sdxl-{tiny}.safetensors"
        write_adapter(file, "sdxl", 32, 0, tiny=tiny)
        read = measure_reading(file, skeletons("sdxl", tiny=tiny).adaptable, 3 if quick else 7)
        size = file.stat().st_size / 2**20
        print(
            f"Reading an adapter of sdxl, 986 layers of rank 32, {what} ({size:.0f} MiB): "
            f"{median(read.wall_s):.2f} s, {median(read.cpu_s):.2f} s of CPU time."
        )
    print()


def measure_steps(
    engine: Engine, pipeline: BarePipeline, batch: int, repetitions: int, *, styles: bool
) -> Turns:
    """Warms up, then runs one batch again and again."""
    take_turns(engine, pipeline, step_jobs(batch, WARM_UP_STEPS, styles=styles), Turns())
    turns = Turns()
    for _ in range(repetitions):
        jobs = step_jobs(batch, STEPS_BY_BATCH[batch], styles=styles)
        take_turns(engine, pipeline, jobs, turns)
    return turns


def bench_mixed_load(models: list[Model], rounds: int) -> None:
    """Prints the time of a mixed load as a share of one pipeline's, for each model."""
    rows: list[tuple[str, ...]] = []
    for model in models:
        with running_engine(model) as engine:
            pipeline = BarePipeline(model)
            pipeline.load_styles()
            result = run_rounds(engine, pipeline, rounds)
        rows.append(
            (
                f"x{model.scale}",
                f"{REQUESTS / median(result.pipeline_s):.2f}",
                f"{REQUESTS / median(result.engine_s):.2f}",
                spread(ratios(result.pipeline_s, result.engine_s)),
                spread(ratios(result.pipeline_cpu_s, result.engine_cpu_s)),
                f"{result.rows_a_call:.1f}",
                str(result.levels),
            )
        )
    steps = [job.num_inference_steps for job in mixed_jobs()]
    told = f"{REQUESTS} mixed requests of {min(steps)} to {max(steps)} steps, {AT_A_TIME} at a time"
    print(f"### {told}\n")
    print_table(
        (
            "UNet width",
            "pipeline, images/s",
            "engine, images/s",
            "engine : pipeline",
            "by CPU time",
            "UNet rows a call",
            "largest pixel difference, of 255",
        ),
        rows,
    )


if __name__ == "__main__":
    main()
