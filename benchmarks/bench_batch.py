"""What a batch costs the requests beside it. Results in markdown.

    python -m benchmarks.bench_batch [--rounds N] [--lines N] [--seconds N] [--loads X ...]

The service runs as `make demo` starts it. Its requests come at random, a share of what it can do,
or from clients that always wait for one: for a while alone, then beside a batch of the official
client, until that is done or the while is over. The same requests at the same moments each time.
"""

import argparse
import io
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai

from benchmarks.models import SIDE, write_model
from benchmarks.report import machine, percentile, print_table, ratios, spread
from benchmarks.service import running_service

STEPS = 4
CLIENTS = 4
FILLING = 16  # clients that show what the service can do
WARM_UP_S = 10.0
LOADS = (0.3, 0.6)  # of what it can do
THREADS = 64
LOOK_S = 1.0


@dataclass
class Round:
    """Seconds of the requests of a while, alone and beside the batch, and lines of it a second."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    lines_s: float = 0.0


@dataclass
class Traffic:
    """Requests to a service.

    Attributes:
        rate: a second, at random moments; 0: from `CLIENTS` that wait for one at a time.
    """

    web: httpx.Client
    model: str
    rate: float = 0.0

    def request(self, number: int, since: float) -> float:
        """Seconds that one takes that came at this moment."""
        body = {
            "model": self.model,
            "prompt": f"a red fox in the snow, number {number}",
            "seed": number,
            "num_inference_steps": STEPS,
        }
        self.web.post("/v1/images/generations", json=body).raise_for_status()
        return time.perf_counter() - since

    def during(self, seconds: float, over: threading.Event, clients: int = CLIENTS) -> list[float]:
        """What requests take that come within so many seconds, or until it is `over`."""
        until = time.perf_counter() + seconds

        def going() -> bool:
            return time.perf_counter() < until and not over.is_set()

        def client(place: int) -> list[float]:
            took: list[float] = []
            while going():
                took.append(self.request(place + clients * len(took), time.perf_counter()))
            return took

        if not self.rate:
            with ThreadPoolExecutor(clients) as pool:
                return [one for took in pool.map(client, range(clients)) for one in took]
        chance = random.Random(7)
        sent: list[Future[float]] = []
        with ThreadPoolExecutor(THREADS) as pool:
            at = time.perf_counter()
            while going():
                sent.append(pool.submit(self.request, len(sent), at))
                at += chance.expovariate(self.rate)
                time.sleep(max(0.0, at - time.perf_counter()))
        return [one.result() for one in sent]


@dataclass
class Batch:
    """A batch of the official client, from when it is handed in."""

    client: openai.OpenAI
    model: str
    lines: int
    over: threading.Event = field(default_factory=threading.Event)
    took_s: float = 0.0

    def run(self) -> None:
        """Until it is done; raises if anything of it failed."""
        try:
            started = time.perf_counter()
            file = self.client.files.create(file=("lines.jsonl", self.text()), purpose="batch")
            batch = self.client.batches.create(
                input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h"
            )
            while batch.status in ("validating", "in_progress", "finalizing"):
                time.sleep(LOOK_S)
                batch = self.client.batches.retrieve(batch.id)
            self.took_s = time.perf_counter() - started
            counts = batch.request_counts
            assert counts is not None
            assert (batch.status, counts.completed) == ("completed", self.lines), batch
        finally:
            self.over.set()

    def text(self) -> io.BytesIO:
        """Its file."""
        body = {"model": self.model, "num_inference_steps": STEPS}
        lines = (
            {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": "/v1/images/generations",
                "body": body | {"prompt": f"a blue fox, number {number}", "seed": number},
            }
            for number in range(self.lines)
        )
        return io.BytesIO("\n".join(map(json.dumps, lines)).encode())


def measured(traffic: Traffic, batches: openai.OpenAI, lines: int, seconds: float) -> Round:
    """A round: alone, beside a batch, alone."""
    never = threading.Event()
    taken = Round(alone=traffic.during(seconds, never))
    batch = Batch(batches, traffic.model, lines)
    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(batch.run)
        taken.beside = traffic.during(seconds, batch.over)
        running.result()
    taken.lines_s = lines / batch.took_s
    taken.alone += traffic.during(seconds, never)
    return taken


def row(name: str, rounds: Sequence[Round]) -> list[str]:
    """A load's line of the table: of the requests of all rounds together, and of each round."""
    cells = [name]
    for share in (0.5, 0.95):
        alone = percentile([took for r in rounds for took in r.alone], share)
        beside = percentile([took for r in rounds for took in r.beside], share)
        of_each = ratios(
            [percentile(r.beside, share) for r in rounds],
            [percentile(r.alone, share) for r in rounds],
        )
        ratio = f"{beside / alone:.2f} ({min(of_each):.2f} to {max(of_each):.2f})"
        cells += [f"{1e3 * alone:.0f}", f"{1e3 * beside:.0f}", ratio]
    return [*cells, spread([r.lines_s for r in rounds], digits=1)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lines", type=int, default=60)
    parser.add_argument("--loads", type=float, nargs="*", default=LOADS, help="of what it can do")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--scale", type=int, default=1, help="width of the UNet, of the demo's")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", asked.scale)
        with (
            running_service([model]) as url,
            httpx.Client(base_url=url, timeout=120) as web,
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as batches,
        ):
            traffic = Traffic(web, model.args.name)
            never = threading.Event()
            traffic.during(WARM_UP_S, never, FILLING)
            most = len(traffic.during(WARM_UP_S, never, FILLING)) / WARM_UP_S
            print(
                f"{machine()}; UNet width x{asked.scale}, {SIDE} x {SIDE} pixels, {STEPS} steps; "
                f"{FILLING} clients: {most:.1f} images/s; a batch of {asked.lines}\n"
            )
            loads = {f"{load:g} of that": load * most for load in asked.loads}
            rows = []
            for name, rate in {**loads, f"{CLIENTS} clients": 0.0}.items():
                traffic.rate = rate
                rounds: list[Round] = []
                for number in range(asked.rounds):
                    rounds.append(measured(traffic, batches, asked.lines, asked.seconds))
                    print(f"{name}, {number}: {row(name, rounds)}", file=sys.stderr, flush=True)
                rows.append(row(name, rounds))
            header = ["requests", "p50 alone, ms", "beside", "ratio"]
            header += ["p95 alone, ms", "beside", "ratio", "lines/s"]
            print_table(header, rows)


if __name__ == "__main__":
    main()
