"""What the router saves: adapters loaded, and how long requests take, beside Serve's own router.

    python -m benchmarks.bench_router [--turns 10] [--requests 150] [--clients 8]

The demo's sd15 twice, each with four replicas that have room for a quarter of 200 adapters, called
by a handle, as the ingress does. Seven requests of ten name an adapter, by Zipf's law; the others
name none. Both get the same requests, in turn: a part for one, the same part for the other. The
first two parts fill the replicas and are not counted.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import ray
import torch
from ray import serve
from ray.serve import RunTarget
from ray.serve._private.constants import DEFAULT_REQUEST_ROUTER_PATH
from ray.serve.handle import DeploymentHandle
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.report import machine, percentile, print_table
from configs.app import Defaults, Limits, ModelArgs, ModelUserConfig
from demo.service import ENVIRONMENT
from deployments.contracts.figures import EngineFigures
from deployments.contracts.jobs import ImageJob, ImageResult, LoraWeight
from deployments.contracts.refusal import Refusal, accepted
from deployments.diffusion.deployment import Diffusion
from graphs.model import DIFFUSION

REPLICAS = 4
ADAPTERS = 200
ADAPTED = 0.7  # of the requests
FILLING = 2  # turns
PATTERN = Path("demo/weights/loras/sd15/ink.safetensors")  # whose layers and ranks all have
MIB = 2**20
SETTLED_S = 1.0  # until every replica has published its figures
THEIRS, OURS = "Serve's own", "ours"
Handle = DeploymentHandle[Diffusion]


@dataclass(frozen=True)
class Part:
    """What one router made of a part of the requests.

    Attributes:
        loads: adapters loaded.
        plain, adapted: seconds of each request.
        seconds: of all.
    """

    loads: int
    plain: Sequence[float]
    adapted: Sequence[float]
    seconds: float


def write_adapters(folder: Path) -> dict[str, str]:
    """Files of random weights with the demo's layers, by name."""
    shapes = _shapes()
    chance = torch.Generator().manual_seed(0)
    files = {}
    for number in range(ADAPTERS):
        weights = {
            key: torch.randn(shape, generator=chance).mul_(0.02).half()
            for key, shape in shapes.items()
        }
        file = folder / f"style-{number}.safetensors"
        save_file(weights, file)
        files[file.stem] = str(file)
    return files


def jobs(count: int) -> list[ImageJob]:
    """So many, the same each time."""
    chance = random.Random(0)
    names = [f"style-{number}" for number in range(ADAPTERS)]
    chance.shuffle(names)
    weights = [1 / rank for rank in range(1, ADAPTERS + 1)]
    made = []
    for number in range(count):
        loras: tuple[LoraWeight, ...] = ()
        if chance.random() < ADAPTED:
            loras = (LoraWeight(chance.choices(names, weights)[0], 0.5),)
        prompt = f"a big red ball, number {number}"
        made.append(ImageJob(f"job-{number}", prompt, (number,), 64, 64, loras=loras))
    return made


@contextmanager
def models(adapters: dict[str, str]) -> Iterator[dict[str, Handle]]:
    """A handle to the model behind each router."""
    parameters = sum(torch.Size(shape).numel() for shape in _shapes().values())
    quarter_mb = round(parameters * 4 * ADAPTERS / 4 / MIB)  # float32 on the device
    limits = Limits(min_side=64, max_side=512, lora_budget_mb=quarter_mb)
    deployment = DIFFUSION.options(
        num_replicas=REPLICAS,
        user_config=ModelUserConfig(loras=adapters, limits=limits).model_dump(),
        ray_actor_options={"num_cpus": 0.1},
    )
    theirs = deployment.options(
        request_router_config={"request_router_class": DEFAULT_REQUEST_ROUTER_PATH}
    )
    args = ModelArgs(
        name="sd15",
        family="sd15",
        checkpoint="demo/weights/sd15",
        tcd_lora="demo/weights/tcd-lora/sd15",
        dtype="float32",
        device="cpu",
        defaults=Defaults(width=64, height=64),
    )
    os.environ.update(ENVIRONMENT, OMP_NUM_THREADS="1")
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200 * MIB,
        log_to_driver=False,
    )
    try:
        serve.start(proxy_location="Disabled")
        routed = {THEIRS: theirs, OURS: deployment}
        handles = serve.run_many(
            [
                RunTarget(of.bind(args), name=f"model-{number}", route_prefix=None)
                for number, of in enumerate(routed.values())
            ]
        )
        yield dict(zip(routed, handles, strict=True))
    finally:
        serve.shutdown()
        ray.shutdown()


def _shapes() -> dict[str, list[int]]:
    with safe_open(PATTERN, "pt") as pattern:
        names = list(pattern.keys())
        return {name: pattern.get_slice(name).get_shape() for name in names}


def drive(handle: Handle, asked: Sequence[ImageJob], clients: int) -> Part:
    """Sends all jobs, so many at a time."""
    took: dict[str, float] = {}
    before = _loads(handle)

    def ask(job: ImageJob) -> None:
        begun = time.perf_counter()
        answer: ImageResult | Refusal = handle.submit.remote(job).result(timeout_s=300)
        accepted(answer)
        took[job.job_id] = time.perf_counter() - begun

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as crowd:
        list(crowd.map(ask, asked))
    seconds = time.perf_counter() - begun
    time.sleep(SETTLED_S)
    return Part(
        _loads(handle) - before,
        [took[job.job_id] for job in asked if not job.loras],
        [took[job.job_id] for job in asked if job.loras],
        seconds,
    )


def _loads(handle: Handle) -> int:
    said = handle.broadcast("figures").results(timeout_s=60)
    figures = [one for one in said if isinstance(one, EngineFigures)]
    assert len(figures) == REPLICAS
    return sum(one.lora_loads_total for one in figures)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_router")
    parser.add_argument("--turns", type=int, default=10, help="of both, the first two uncounted")
    parser.add_argument("--requests", type=int, default=150, help="of a turn")
    parser.add_argument("--clients", type=int, default=8, help="requests at a time")
    asked = parser.parse_args()
    made = jobs(asked.turns * asked.requests)
    parts: dict[str, list[Part]] = {THEIRS: [], OURS: []}
    with tempfile.TemporaryDirectory() as folder, models(write_adapters(Path(folder))) as handles:
        for turn in range(asked.turns):
            some = made[turn * asked.requests : (turn + 1) * asked.requests]
            for name, handle in handles.items():
                parts[name].append(drive(handle, some, asked.clients))
    print(f"## Routers\n\n{machine()}; {asked.clients} requests at a time\n")
    header = ["router", "requests", "loads while it fills", "loads", "images/s"]
    times = ["plain: p50, p95, s", "adapted: p50, p95, s"]
    print_table([*header, *times], [_row(name, of) for name, of in parts.items()])
    pairs = list(zip(parts[THEIRS][FILLING:], parts[OURS][FILLING:], strict=True))
    loads = sum(b.loads for _, b in pairs) / sum(a.loads for a, _ in pairs)
    tails = [percentile(b.plain, 0.95) / percentile(a.plain, 0.95) for a, b in pairs]
    print(
        f"ours to Serve's: loads {loads:.2f}, p95 of plain requests {median(tails):.2f} "
        f"({min(tails):.2f} to {max(tails):.2f}, by turn)"
    )


def _row(name: str, parts: Sequence[Part]) -> list[str]:
    filling, counted = parts[:FILLING], parts[FILLING:]
    plain = [seconds for part in counted for seconds in part.plain]
    adapted = [seconds for part in counted for seconds in part.adapted]
    count = len(plain) + len(adapted)
    return [
        name,
        str(count),
        str(sum(part.loads for part in filling)),
        str(sum(part.loads for part in counted)),
        f"{count / sum(part.seconds for part in counted):.1f}",
        f"{percentile(plain, 0.5):.2f}, {percentile(plain, 0.95):.2f}",
        f"{percentile(adapted, 0.5):.2f}, {percentile(adapted, 0.95):.2f}",
    ]


if __name__ == "__main__":
    main()
