"""What no server can be faster than: our engine without HTTP, and a loop around a pipeline.

    python -m benchmarks.peers.limits engine|bare

Each is a process that reads one `Load` a line from standard input, after a line with its `Start`,
and writes one `Taken` for each. With several workers it only divides loads among as many such
processes: what all cores can do.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain, count, islice
from statistics import mean
from time import perf_counter, sleep
from typing import IO, Self

from benchmarks.models import Model
from benchmarks.peers.load import PAUSE_S, Load, Taken
from benchmarks.peers.running import our_limits
from benchmarks.peers.settings import KEPT, Limit, Settings
from benchmarks.peers.traffic import ETA, SIDE, Request, requests
from demo.service import OUT, ROOT, failed

Drive = Callable[[Load], Taken]

OTHER_REQUESTS = 1000  # further on in the numbers of seeds
END_S = 10.0  # for the load under way


@dataclass(frozen=True)
class Start:
    """What such a process is started with."""

    args: dict[str, object]  # ModelArgs
    loras: dict[str, str]
    limits: dict[str, float]
    keep: int
    batch: int
    threads: int
    workers: int


class Alone:
    """One such process, at work."""

    def __init__(self, name: Limit, process: subprocess.Popen[str]) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process

    def taken(self, load: Load) -> Taken:
        """What comes of a load. Raises SystemExit with the log's end for a failure."""
        line = self._exchange(json.dumps(asdict(load)))
        return Taken(**json.loads(line))

    def wait(self, start: Start) -> Self:
        """Returns when it is ready."""
        self._exchange(json.dumps(asdict(start)))
        return self

    def _exchange(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(failed(f"{self.name} ended", OUT / f"bench-{self.name}.log"))
        return answer


@contextmanager
def alone(name: Limit, model: Model, settings: Settings, *, churn: bool) -> Iterator[Alone]:
    """Starts one; with `churn` it keeps `KEPT` adapters."""
    start = Start(
        model.args.model_dump(mode="json"),
        model.loras,
        our_limits(model, settings, churn=churn),
        KEPT if churn else 0,
        settings.batch,
        settings.threads,
        settings.workers,
    )
    OUT.mkdir(exist_ok=True)
    with (OUT / f"bench-{name}.log").open("wb") as log, _process(name, start, log) as begun:
        yield begun.wait(start)


@contextmanager
def _process(name: Limit, start: Start, log: IO[bytes] | None) -> Iterator[Alone]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.limits", name],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(start.threads)},
    )
    try:
        yield Alone(name, process)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # at which it ends, and workers of its own
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        process.kill()
        process.wait()


@contextmanager
def workers(name: Limit, start: Start) -> Iterator[Drive]:
    """Several of them at once, each with its share of the clients."""
    one = replace(start, workers=1)
    with ExitStack() as all_of_them, ThreadPoolExecutor(start.workers) as pool:
        begun = [all_of_them.enter_context(_process(name, one, None)) for _ in range(start.workers)]
        list(pool.map(lambda worker: worker.wait(one), begun))

        def drive(load: Load) -> Taken:
            parts = shares(load, min(load.clients, start.workers))
            return together(list(pool.map(Alone.taken, begun, parts)))

        yield drive


def shares(load: Load, count: int) -> list[Load]:
    """A load in `count` parts, of requests of their own."""
    return [
        replace(
            load,
            clients=(load.clients + number) // count,
            least=(load.least + number) // count,
            seed=load.seed + OTHER_REQUESTS * number,
        )
        for number in range(count)
    ]


def together(parts: Sequence[Taken]) -> Taken:
    """What came of all parts of a load at once: as many images a second as all of them."""
    window_s = mean(part.window_s for part in parts)
    images_s = sum(part.window_images / part.window_s for part in parts)
    return Taken(
        list(chain.from_iterable(part.latencies_s for part in parts)),
        window_s,
        round(images_s * window_s),
        list(chain.from_iterable(part.bursts_s for part in parts)),
    )


def engine(start: Start) -> Drive:
    """Our engine, with as many callers as there are clients."""
    import torch

    from configs.app import ModelArgs, ModelUserConfig
    from deployments.contracts.jobs import ImageJob, LoraWeight
    from deployments.diffusion.engine.engine import Engine
    from deployments.diffusion.engine.models.components import load as load_components

    torch.set_num_threads(start.threads)
    config = ModelUserConfig.model_validate({"loras": start.loras, "limits": start.limits})
    made = Engine(load_components(ModelArgs.model_validate(start.args)), config)
    numbers = count()

    def generate(request: Request) -> None:
        job = ImageJob(
            f"bench-{next(numbers)}",
            request.prompt,
            (request.seed,),
            SIDE,
            SIDE,
            negative_prompt=request.negative_prompt,
            num_inference_steps=request.steps,
            eta=ETA,
            guidance_scale=request.guidance,
            loras=tuple(LoraWeight(name, weight) for name, weight in request.loras),
        )
        made.generate(job)

    def drive(load: Load) -> Taken:
        asked = requests(load.kind, load.seed)
        return (
            _bursts(load, asked, generate)
            if load.kind == "bursts"
            else _loop(load, asked, generate)
        )

    return drive


def bare(start: Start) -> Drive:
    """A pipeline, batch after batch; there are no clients."""
    from benchmarks.peers.servers.drawer import Drawer
    from benchmarks.peers.servers.options import Options
    from benchmarks.peers.servers.wire import Body

    checkpoint, tcd_lora = str(start.args["checkpoint"]), str(start.args["tcd_lora"])
    options = Options(0, checkpoint, tcd_lora, start.loras, keep=start.keep, threads=start.threads)
    drawer = Drawer(options)

    def drive(load: Load) -> Taken:
        asked = (
            Body.model_validate_json(request.body("")) for request in requests(load.kind, load.seed)
        )
        taken = Taken()
        started = perf_counter()
        while not taken.enough(load):
            began = perf_counter()
            left = load.clients if load.kind == "bursts" else start.batch
            while left > 0:
                rows = list(islice(asked, min(left, start.batch)))
                drawer.draw(rows)
                left -= len(rows)
                taken.latencies_s += [perf_counter() - began] * len(rows)
            taken.window_s = perf_counter() - started
            taken.window_images = len(taken.latencies_s)
            if load.kind == "bursts":
                taken.bursts_s.append(perf_counter() - began)
        return taken

    return drive


def _loop(load: Load, asked: Iterator[Request], generate: Callable[[Request], None]) -> Taken:
    taken = Taken()
    lock = threading.Lock()
    started = perf_counter()

    def client(_: int) -> None:
        while True:
            with lock:
                if taken.window_s:
                    return
                request = next(asked)
            began = perf_counter()
            generate(request)
            now = perf_counter()
            with lock:
                taken.image(load, now - began, now - started)

    with ThreadPoolExecutor(load.clients) as clients:
        list(clients.map(client, range(load.clients)))
    return taken


def _bursts(load: Load, asked: Iterator[Request], generate: Callable[[Request], None]) -> Taken:
    taken = Taken()

    def timed(request: Request) -> float:
        began = perf_counter()
        generate(request)
        return perf_counter() - began

    with ThreadPoolExecutor(load.clients) as clients:
        while not taken.enough(load):
            started = perf_counter()
            taken.latencies_s += clients.map(timed, list(islice(asked, load.clients)))
            taken.burst(load.clients, perf_counter() - started)
            sleep(PAUSE_S)
    return taken


def main() -> None:
    """Serves loads until standard input ends."""
    start = Start(**json.loads(sys.stdin.readline()))
    name: Limit = "engine" if sys.argv[1] == "engine" else "bare"
    with ExitStack() as ended:
        if start.workers > 1:
            drive = ended.enter_context(workers(name, start))
        else:
            drive = {"engine": engine, "bare": bare}[name](start)
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(asdict(drive(Load(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
