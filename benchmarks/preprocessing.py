"""Preprocessors of the running graph, one after the other and side by side."""

import asyncio
import logging
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import cast

import numpy as np
import ray
from ray import serve

from benchmarks.report import print_table, quartiles, ratios
from configs.app import PreprocessorArgs, ServiceArgs
from deployments.contracts.jobs import Pixels
from deployments.contracts.maps import MapSpec
from graphs.service import build

SIDE = 512
WARM_UP = 3
APPLICATION = "tcd"
Calls = dict[str, Callable[[Pixels], Awaitable[object]]]


def bench_preprocessing(models: Path, rounds: int) -> None:
    """Prints the time of depth, canny and an image encoding both ways."""
    with running_graph(models):
        asyncio.run(_measure(rounds))


@contextmanager
def running_graph(models: Path) -> Iterator[None]:
    """The `tcd` application on a cluster of its own."""
    args = ServiceArgs(
        depth=PreprocessorArgs(checkpoint=str(models / "dpt-hybrid"), device="cpu"),
        image_encoders={
            "sd15": PreprocessorArgs(
                checkpoint=str(models / "ip-adapter" / "models" / "image_encoder"), device="cpu"
            )
        },
    )
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=8,  # Ray's book-keeping only
            object_store_memory=200 * 2**20,
            _temp_dir=folder,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            serve.run(build(args), name=APPLICATION, route_prefix=None)
            yield
        finally:
            serve.shutdown()
            ray.shutdown()


async def _measure(rounds: int) -> None:
    calls = _calls()
    alone: dict[str, list[float]] = {name: [] for name in calls}
    in_turn: list[float] = []
    together: list[float] = []
    source = np.random.default_rng(0)
    for _ in range(WARM_UP + rounds):
        picture: Pixels = source.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        for name, call in calls.items():
            started = perf_counter()
            await call(picture)
            alone[name].append(perf_counter() - started)
        in_turn.append(sum(times[-1] for times in alone.values()))
        started = perf_counter()
        await asyncio.gather(*(call(picture) for call in calls.values()))
        together.append(perf_counter() - started)
    print(f"### Preprocessing of a {SIDE} x {SIDE} picture\n")
    print_table(
        (
            *(f"{name}, ms" for name in calls),
            "one after the other, ms",
            "side by side, ms",
            "ratio",
        ),
        [
            (
                *(f"{median(times[WARM_UP:]) * 1e3:.0f}" for times in alone.values()),
                f"{median(in_turn[WARM_UP:]) * 1e3:.0f}",
                f"{median(together[WARM_UP:]) * 1e3:.0f}",
                quartiles(ratios(in_turn[WARM_UP:], together[WARM_UP:])),
            )
        ],
    )


def _calls() -> Calls:
    """Each preprocessor by the handle that the graph uses."""
    depth = serve.get_deployment_handle("Depth", APPLICATION)
    canny = serve.get_deployment_handle("Canny", APPLICATION)
    encoder = serve.get_deployment_handle("ImageEncoder-sd15", APPLICATION)
    spec = MapSpec("depth", "", SIDE, SIDE)
    return {
        "depth": lambda picture: cast(Awaitable[object], depth.estimate.remote(picture, spec)),
        "canny": lambda picture: cast(Awaitable[object], canny.detect.remote(picture, spec)),
        "image encoding": lambda picture: cast(
            Awaitable[object], encoder.encode.remote(picture, spec)
        ),
    }
