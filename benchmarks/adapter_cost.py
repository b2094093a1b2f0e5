"""What style adapters cost: in the step loop, beside plain requests while they load, to read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from pathlib import Path
from statistics import median, quantiles
from threading import Event, Thread
from time import perf_counter, thread_time

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.models import SIDE, Model
from benchmarks.step_loop import SETTLED, step_jobs
from deployments.contracts.jobs import FailedImage, ImageJob, JobEvent, LoraWeight, Progress
from deployments.diffusion.engine.adapters.reader import LoraReader
from deployments.diffusion.engine.engine import Engine

STEPS_BY_BATCH = {1: 40, 8: 16}
PLAIN_STEPS = 4


@dataclass
class InUse:
    """Seconds of the engine's steps, pair by pair: without adapters, and with three."""

    none_s: list[float] = field(default_factory=list)
    three_s: list[float] = field(default_factory=list)


def measure_in_use(engine: Engine, batch: int, rounds: int) -> InUse:
    """Runs the same batch without adapters and with them in turn. The first row uses all three,
    each other row one of them."""
    result = InUse()
    for styles in (False, True):  # warms up, and brings the adapters
        _steps(engine, step_jobs(batch, 2 * SETTLED + 2, styles=styles))
    for _ in range(rounds):
        steps = STEPS_BY_BATCH[batch]
        result.none_s.append(_steps(engine, step_jobs(batch, steps, styles=False)))
        result.three_s.append(_steps(engine, step_jobs(batch, steps, styles=True)))
    return result


def _steps(engine: Engine, jobs: list[ImageJob]) -> float:
    """The median time between two steps of these jobs, all rows in one batch."""
    times: list[float] = []
    done = [Event() for _ in jobs]

    def listen(event: JobEvent, index: int) -> None:
        if isinstance(event, FailedImage):
            raise event.error
        if not isinstance(event, Progress):
            done[index].set()
        elif index == len(jobs) - 1:
            times.append(perf_counter())

    for index, job in enumerate(jobs):
        engine.submit(job, lambda event, index=index: listen(event, index))  # type: ignore[misc]
    for one in done:
        one.wait()
    settled = times[SETTLED : len(times) - SETTLED]
    return median(b - a for a, b in pairwise(settled))


@dataclass
class Beside:
    """Seconds of plain requests, one after the other, beside requests that use an adapter:
    always the same one, or each time one that was never seen. `loads`: of the latter."""

    warm_s: list[float] = field(default_factory=list)
    cold_s: list[float] = field(default_factory=list)
    loads: int = 0


def p95(times: list[float]) -> float:
    """The time that one in twenty exceeds."""
    return quantiles(times, n=20)[-1]


def write_cold(model: Model, folder: Path, adapters: int) -> dict[str, str]:
    """Copies of a style with numbers of their own, by name."""
    tensors = load_file(next(iter(model.loras.values())))
    written: dict[str, str] = {}
    for n in range(adapters):
        file = folder / f"cold-{n}.safetensors"
        save_file({name: t * (1 + n / 1000) for name, t in tensors.items()}, file)
        written[file.stem] = str(file)
    return written


def measure_loads(engine: Engine, cold: list[str], rounds: int, requests: int) -> Beside:
    """Plain requests beside a client whose adapter is warm and beside one whose is new, in turn."""
    result, ids, names = Beside(), count(), iter(cold)
    warm = cold[0]
    next(names)
    _image(engine, f"warm {next(ids)}", warm)
    before = engine.figures().lora_loads_total
    for _ in range(rounds):
        for times, fresh in ((result.warm_s, False), (result.cold_s, True)):
            stop = Event()

            def styled(fresh: bool = fresh, stop: Event = stop) -> None:
                while not stop.is_set():
                    _image(engine, f"styled {next(ids)}", next(names) if fresh else warm)

            client = Thread(target=styled)
            client.start()
            for _ in range(requests):
                started = perf_counter()
                _image(engine, f"plain {next(ids)}")
                times.append(perf_counter() - started)
            stop.set()
            client.join()
    result.loads = engine.figures().lora_loads_total - before
    return result


def _image(engine: Engine, job_id: str, lora: str | None = None) -> None:
    job = ImageJob(job_id, "a red fox", (7,), SIDE, SIDE, num_inference_steps=PLAIN_STEPS)
    if lora is not None:
        job = replace(job, loras=(LoraWeight(lora, 1.0),))
    engine.generate(job)


@dataclass
class Reading:
    """Seconds to read an adapter: on the wall, and of the reading thread's CPU time."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def measure_reading(file: Path, models: Mapping[str, nn.Module], rounds: int) -> Reading:
    """Reads one file again and again, into float16."""
    reader, result = LoraReader(models, torch.float16), Reading()
    for _ in range(rounds):
        started, started_cpu = perf_counter(), thread_time()
        reader.read(file)
        result.wall_s.append(perf_counter() - started)
        result.cpu_s.append(thread_time() - started_cpu)
    return result
