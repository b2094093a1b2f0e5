"""Which settings suit a server: each combination for a few seconds. Results in markdown.

    python -m benchmarks.peers.sweep litserve --batch 4,8,16 --wait-ms 0,5,20
        [--threads 1,2] [--workers 1,2] [--ongoing 5] [--haproxy 0,1] [--compiled 0,1]
        [--traffic uniform] [--clients 32] [--scale 1] [--seconds 6]

`benchmarks/peers/settings.py` has those chosen so.
"""

import argparse
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.models import write_model
from benchmarks.peers.contestants import contestant
from benchmarks.peers.load import Load
from benchmarks.peers.running import with_churn
from benchmarks.peers.settings import BEST, READ, Name
from benchmarks.peers.traffic import KINDS
from benchmarks.peers.turns import WARM_UP_S, turn
from benchmarks.report import machine


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.sweep")
    parser.add_argument("server", choices=tuple(BEST))
    for name in READ:
        parser.add_argument(f"--{name.replace('_', '-')}", help="several, separated by commas")
    parser.add_argument("--traffic", choices=KINDS, default="uniform")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0)
    asked = parser.parse_args()
    server: Name = asked.server
    given: dict[str, str | None] = {name: vars(asked)[name] for name in READ}
    values = {
        name: [READ[name](word) for word in text.split(",")]
        for name, text in given.items()
        if text is not None
    }
    churn = asked.traffic == "churn"
    print(f"{machine()}; {server}, {asked.traffic}, {asked.clients} clients, x{asked.scale}\n")
    print("| settings | images/s | p50, s | p95, s | CPU s an image |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder), asked.scale)
        if churn:
            model = with_churn(model, Path(folder))
        for combination in product(*values.values()):
            changes: dict[str, Any] = dict(zip(values, combination, strict=True))
            settings = replace(BEST[server], **changes)
            with contestant(server, model, settings, churn=churn) as one:
                one.taken(Load(asked.traffic, asked.clients, WARM_UP_S, 0, seed=-2))
                load = Load(asked.traffic, asked.clients, asked.seconds, asked.clients, seed=0)
                done = turn(one, load)
            told = f"{done.images_s:.2f} | {done.p50_s:.2f} | {done.p95_s:.2f}"
            print(f"| {settings.shown(server)} | {told} | {done.all_cpu_s:.3f} |", flush=True)


if __name__ == "__main__":
    main()
