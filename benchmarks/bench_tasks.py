"""Every task of the guide at once, and a request that needs everything. Results in markdown.

    python -m benchmarks.bench_tasks [--rounds N]

Three questions: what nine different tasks cost as one batch beside nine pipeline runs; what one
request with two ControlNets and an IP-Adapter costs beyond its model forwards; and what is
gained by preprocessors that run side by side.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.forwards import Forwards
from benchmarks.models import write_tasks_models
from benchmarks.pipeline import quiet_libraries
from benchmarks.preprocessing import bench_preprocessing
from benchmarks.report import machine, print_table, quartiles, ratios
from configs.app import Limits, ModelUserConfig
from deployments.contracts.jobs import LoraWeight
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from tests.conftest import demo_loras
from tests.deployments.diffusion.engine.pipelines import Pipelines
from tests.deployments.diffusion.engine.tasks import (
    ADAPTERS,
    Checkpoint,
    Net,
    Task,
    box_mask,
    make_all,
    task,
)

SCALE = 2  # UNet width: a forward of about 20 ms at batch 1
SIDE = 128
STEPS = 8
WARM_UP = 2
SIZE: dict[str, Any] = {"width": SIDE, "height": SIDE, "num_inference_steps": STEPS}
STYLES = (LoraWeight("papercut", 0.8), LoraWeight("ink", 0.5))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_tasks")
    parser.add_argument("--rounds", type=int, default=10)
    rounds: int = parser.parse_args().rounds
    quiet_libraries()
    torch.set_num_threads(1)
    print(f"{machine()}, one torch thread; {SIDE} x {SIDE} pixels, {STEPS} steps\n")
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        write_tasks_models(models, SCALE)
        checkpoint = Checkpoint(models, "sd15", "sd15", ADAPTERS["sd15"])
        config = ModelUserConfig(
            loras=demo_loras(models, "sd15"), limits=Limits(max_batch=16, max_running=16)
        )
        engine = Engine(load(checkpoint.args()), config)
        pipelines = Pipelines(checkpoint)
        try:
            bench_nine_tasks(engine, checkpoint, pipelines, rounds)
            bench_one_request(engine, checkpoint, pipelines, rounds)
        finally:
            engine.stop()
        bench_preprocessing(models, rounds)


def nine_tasks(checkpoint: Checkpoint) -> list[Task]:
    """One of each. Pictures to resemble are encoded here, as the pipelines do it."""
    depth, canny = Net("depth"), Net("canny", 0.8)
    sees = (checkpoint, 1, 0.6)
    return [
        task("plain", **SIZE),
        task("styles", loras=STYLES, **SIZE),
        task("depth", nets=[depth], **SIZE),
        task("canny", nets=[canny], **SIZE),
        task("depth and canny", nets=[depth, canny], **SIZE),
        task("ip-adapter", sees=sees, **SIZE),
        task("ip-adapter and canny", sees=sees, nets=[canny], **SIZE),
        task("image to image", image=True, strength=0.8, **SIZE),
        task("inpainting", image=True, mask=box_mask(SIDE, SIDE), strength=0.99, **SIZE),
    ]


def bench_nine_tasks(
    engine: Engine, checkpoint: Checkpoint, pipelines: Pipelines, rounds: int
) -> None:
    """Prints the time of nine tasks in one batch as a share of nine pipeline runs."""
    ours: list[float] = []
    theirs: list[float] = []
    levels = 0
    for _ in range(WARM_UP + rounds):
        started = perf_counter()
        tasks = nine_tasks(checkpoint)
        made = make_all(engine, tasks)
        halfway = perf_counter()
        answers = [pipelines.image(one) for one in tasks]
        theirs.append(perf_counter() - halfway)
        ours.append(halfway - started)
        for one, answer in zip(tasks, answers, strict=True):
            pixels = made[one.job.job_id, 0].pixels.astype(int)
            levels = max(levels, int(np.abs(pixels - answer.pixels.astype(int)).max()))
    ours, theirs = ours[WARM_UP:], theirs[WARM_UP:]
    print("### Nine tasks\n")
    print_table(
        ("nine pipeline runs, s", "one batch, s", "batch : runs, images/s", "largest difference"),
        [
            (
                f"{median(theirs):.2f}",
                f"{median(ours):.2f}",
                quartiles(ratios(theirs, ours)),
                f"{levels} of 255",
            )
        ],
    )


def bench_one_request(
    engine: Engine, checkpoint: Checkpoint, pipelines: Pipelines, rounds: int
) -> None:
    """Prints the time of a request with everything as a multiple of its model forwards."""
    nets = [Net("depth"), Net("canny", 0.8)]
    totals: dict[str, list[float]] = {"engine": [], "diffusers pipeline": []}
    sums: list[float] = []
    pipelines.image(task("first", nets=nets, sees=(checkpoint, 1, 0.6), **SIZE))
    with Forwards(pipelines.models_of(adapted=True, nets=("depth", "canny"))) as forwards:
        for number in range(WARM_UP + rounds):
            asked = f"a red fox {number}"  # whose embeddings are not remembered
            started = perf_counter()
            one = task("all", prompt=asked, nets=nets, sees=(checkpoint, 1, 0.6), **SIZE)
            make_all(engine, [one])
            totals["engine"].append(perf_counter() - started)
            forwards.seconds = 0.0
            started = perf_counter()
            pipelines.image(one)
            totals["diffusers pipeline"].append(perf_counter() - started)
            sums.append(forwards.seconds)
    print("### One request with two ControlNets and an IP-Adapter\n")
    print_table(
        ("", "ms", "of the sum of the model forwards"),
        [
            ("sum of the model forwards", f"{median(sums[WARM_UP:]) * 1e3:.0f}", "1"),
            *(
                (
                    name,
                    f"{median(values[WARM_UP:]) * 1e3:.0f}",
                    quartiles(ratios(values[WARM_UP:], sums[WARM_UP:])),
                )
                for name, values in totals.items()
            ),
        ],
    )


if __name__ == "__main__":
    main()
