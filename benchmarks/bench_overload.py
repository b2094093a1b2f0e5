"""What the service gives when more is asked than it can do. Results in markdown.

    python -m benchmarks.bench_overload [--rounds N] [--seconds N] [--loads X ...] [--timeout-s N]

Requests come at random moments, a multiple of what the service does for clients that wait for
their answers, and nobody waits for another's. Each says within how long it is of use
(`timeout_s`): then it has its image, or is answered with 408.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from time import perf_counter

from benchmarks.models import SIDE, write_model
from benchmarks.peers.load import Connection, Load
from benchmarks.peers.running import our_service
from benchmarks.peers.settings import Settings
from benchmarks.peers.traffic import Request, requests
from benchmarks.report import machine, percentile, print_table, ratios, spread

FILLING = 32  # clients that show what the service can do
LOADS = (0.5, 1.0, 2.0, 4.0)  # of what it can do
MANY = Load("uniform", FILLING, 10.0, 20, seed=1)


@dataclass(frozen=True)
class Answer:
    """What one request got.

    Attributes:
        came_s: since the first request was sent.
        took_s: since it should have been sent.
    """

    status: int
    came_s: float
    took_s: float


@dataclass(frozen=True)
class Round:
    """What came within a while, of which `seconds` are counted."""

    answers: Sequence[Answer]
    seconds: float

    @property
    def goodput(self) -> float:
        """Images a second."""
        return sum(answer.status == HTTPStatus.OK for answer in self.answers) / self.seconds


class Crowd:
    """Clients that wait for nobody."""

    def __init__(self, load: Load, timeout_s: float, source: Iterator[Request]) -> None:
        self._load, self._timeout_s, self._source = load, timeout_s, source

    async def asks(self, rate: float, seconds: float) -> Round:
        """`rate` requests a second; counted is what comes in `seconds`, after a first `timeout_s`,
        in which the queue becomes what it stays."""
        chance, answers, free = random.Random(7), list[Answer](), list[Connection]()
        begin = perf_counter()
        from_s, until_s = self._timeout_s, self._timeout_s + seconds

        async def one(due_s: float) -> None:
            connection = free.pop() if free else await Connection.opened(self._load)
            status, _ = await connection.answer(self._body())
            free.append(connection)
            came_s = perf_counter() - begin
            answers.append(Answer(status, came_s, came_s - due_s))

        async with asyncio.TaskGroup() as group:
            due_s = 0.0
            while due_s < until_s:
                await asyncio.sleep(max(0.0, begin + due_s - perf_counter()))
                group.create_task(one(due_s))
                due_s += chance.expovariate(rate)
        for connection in free:
            connection.close()
        return Round([one for one in answers if from_s <= one.came_s < until_s], seconds)

    def _body(self) -> bytes:
        fields = json.loads(next(self._source).body(self._load.model))
        return json.dumps(fields | {"timeout_s": self._timeout_s}).encode()


def row(load: float, rounds: Sequence[Round], best: Sequence[float]) -> list[str]:
    """A load's line of the table."""
    goodputs = [one.goodput for one in rounds]
    answers = [answer for one in rounds for answer in one.answers]

    def took(status: int, *shares: float) -> str:
        seconds = [answer.took_s for answer in answers if answer.status == status]
        return ", ".join(f"{percentile(seconds, share):.2f}" for share in shares if seconds)

    def percent(status: int) -> str:
        share = sum(answer.status == status for answer in answers) / max(1, len(answers))
        return f"{100 * share:.0f}"

    return [
        f"{load:g}",
        spread(goodputs, digits=1),
        spread(ratios(goodputs, best)),
        took(HTTPStatus.OK, 0.5, 0.95),
        percent(HTTPStatus.TOO_MANY_REQUESTS),
        took(HTTPStatus.TOO_MANY_REQUESTS, 0.95),
        percent(HTTPStatus.REQUEST_TIMEOUT),
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_overload")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--loads", type=float, nargs="*", default=LOADS, help="of what it can do")
    parser.add_argument("--timeout-s", type=float, default=10.0)
    parser.add_argument("--pending", type=int, default=128, help="max_pending of a replica")
    parser.add_argument("--scale", type=int, default=1, help="width of the UNet, of the demo's")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", asked.scale)
        with our_service(
            model, Settings(workers=2, haproxy=1, pending=asked.pending), churn=False
        ) as server:
            server.taken(MANY)
            taken = server.taken(MANY)
            most = taken.window_images / taken.window_s
            print(
                f"{machine()}; UNet width x{asked.scale}, {SIDE} x {SIDE} pixels; {FILLING} "
                f"clients: {most:.1f} images/s; timeout_s {asked.timeout_s:g}\n",
                flush=True,
            )
            load = Load("uniform", 0, 0, 0, 0, server.port, server.model)
            crowd = Crowd(load, asked.timeout_s, requests("uniform", 2))
            rounds: dict[float, list[Round]] = {load: [] for load in asked.loads}
            for number in range(asked.rounds):
                for share, ones in rounds.items():
                    ones.append(asyncio.run(crowd.asks(share * most, asked.seconds)))
                    print(f"{share:g}, {number}: {ones[-1].goodput:.1f}/s", file=sys.stderr)
            best = [max(one.goodput for one in ones) for ones in zip(*rounds.values(), strict=True)]
            header = ["load", "images/s", "of the best", "took, s: p50, p95"]
            header += ["429, %", "p95 of these, s", "408, %"]
            print_table(header, [row(share, ones, best) for share, ones in rounds.items()])


if __name__ == "__main__":
    main()
