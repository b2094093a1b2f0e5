"""What the scheduler's order is worth to small requests beside large ones, and what it costs.

    python -m benchmarks.bench_order

The scheduler itself, on a device whose calls take a known time (as sdxl's on an H100: 28 ms at
least, 8 ms a call and 19 ms a row of 1024 x 1024), with requests that come at random. Seconds, and
how many times as long as alone. Nothing of that is timed, so one run is enough. `by arrival`: no
aging. At the end what the scheduler itself takes, in milliseconds of a core a turn.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from benchmarks.report import percentile, print_table
from configs.app import Limits
from deployments.contracts.jobs import Caller
from deployments.diffusion.engine.policy.batch import Advanced, BatchKey, Measured
from deployments.diffusion.engine.policy.scheduler import Scheduler
from deployments.diffusion.engine.policy.spec import PromptIds, RowSpec
from deployments.diffusion.engine.policy.trajectory import Trajectory

REQUESTS = 1500
TURNS = 50
HELD = ((32, 1), (128, 1), (128, 8), (512, 8))  # rows, callers
LOADS = (0.5, 0.8, 0.95)  # of what the device could do with full calls
AGINGS = {"by arrival": 10**9, "aging 64": 64, "aging 16": 16, "aging 4": 4}
FULL = BatchKey(128, 128).pixels
ROW_S = 0.019  # a row of 1024 x 1024


@dataclass(frozen=True)
class Kind:
    """Requests that are alike. `often`: how many of them come for one of weight 1."""

    side: int
    steps: int
    often: float = 1.0

    @property
    def key(self) -> BatchKey:
        """Of its rows."""
        return BatchKey(self.side // 8, self.side // 8)

    @property
    def alone_s(self) -> float:
        """How long one takes if nobody else is there."""
        return self.steps * call_s(self.key, 1)


MIXES = {
    "512 in 4 steps, 1024 in 50": (Kind(512, 4, 4.0), Kind(1024, 50)),
    "512, 768, 1024, 1536 in 4": (Kind(512, 4), Kind(768, 4), Kind(1024, 4), Kind(1536, 4, 0.3)),
    "896, 1024, 1152 in 4": (Kind(896, 4), Kind(1024, 4), Kind(1152, 4)),
}


def call_s(key: BatchKey, rows: int) -> float:
    """Seconds of a UNet call."""
    return max(0.028, 0.008 + ROW_S * rows * key.pixels / FULL)


def times(mix: Sequence[Kind], load: float, aging: int) -> dict[Kind, list[float]]:
    """Seconds that each request took, by its kind."""
    chance = random.Random(1)
    scheduler = Scheduler(Limits(max_pending=REQUESTS, aging_steps=aging))
    often = [kind.often for kind in mix]
    work_s = sum(k.often * k.steps * ROW_S * k.key.pixels / FULL for k in mix) / sum(often)
    arrivals: list[tuple[float, Kind]] = []
    for _ in range(REQUESTS):
        before = arrivals[-1][0] if arrivals else 0.0
        arrivals.append((before + chance.expovariate(load / work_s), chance.choices(mix, often)[0]))
    took: dict[Kind, list[float]] = {kind: [] for kind in mix}
    now, come = 0.0, 0
    while come < len(arrivals) or scheduler.live:
        while come < len(arrivals) and arrivals[come][0] <= now:
            kind = arrivals[come][1]
            spec = RowSpec(PromptIds(((),), 0), 0, kind.side, kind.side, kind.steps)
            scheduler.add(Trajectory(str(come), spec))
            come += 1
        for joining in scheduler.joining(0.0):
            scheduler.joined(joining.row_id)
        batch = scheduler.schedule(0.0)
        if batch is None:
            now = arrivals[come][0]
            continue
        seconds = call_s(batch.key, batch.unet_rows)
        now += seconds
        measured = Measured(batch.key, batch.unet_rows, seconds)
        for done in scheduler.advance(batch, Advanced({}, measured)):
            at, kind = arrivals[int(done.row_id)]
            took[kind].append(now - at)
    return took


def turn_ms(rows: int, callers: int) -> float:
    """CPU time of a turn while so many rows of so many callers are held."""
    scheduler = Scheduler(Limits())
    spec = RowSpec(PromptIds(((),), 0), 0, 512, 512, 2 * TURNS)
    whose = [Caller(str(number)) for number in range(callers)]
    for number in range(rows):
        caller, deadline = whose[number % callers], 1000.0 + number
        scheduler.add(Trajectory(str(number), spec, deadline=deadline, caller=caller))
    took_ms = []
    for _ in range(TURNS):
        began = time.process_time()
        scheduler.expired(0.0)
        for joining in scheduler.joining(0.0):
            scheduler.joined(joining.row_id)
        batch = scheduler.schedule(0.0)
        assert batch is not None
        measured = Measured(batch.key, batch.unet_rows, call_s(batch.key, batch.unet_rows))
        scheduler.advance(batch, Advanced({}, measured))
        assert scheduler.work.rows == rows
        assert scheduler.foresight.rows
        took_ms.append((time.process_time() - began) * 1e3)
    return median(took_ms)


def main() -> None:
    """Prints a table for each mix of requests."""
    for name, mix in MIXES.items():
        print(f"{name}: mean and p95 in seconds\n")
        sides = [f"{kind.side}" for kind in mix]
        rows = []
        for load in LOADS:
            for order, aging in AGINGS.items():
                took = times(mix, load, aging)
                shown = [f"{mean(of):.2f}, {percentile(of, 0.95):.2f}" for of in took.values()]
                slower = [t / kind.alone_s for kind, of in took.items() for t in of]
                rows.append(
                    [
                        f"{load}",
                        order,
                        *shown,
                        f"{mean(slower):.1f}, {percentile(slower, 0.95):.1f}",
                    ]
                )
        print_table(["load", "order", *sides, "times as long as alone"], rows)
    print("A turn of the scheduler\n")
    turns = [[f"{rows}", f"{callers}", f"{turn_ms(rows, callers):.2f}"] for rows, callers in HELD]
    print_table(["rows held", "callers", "ms"], turns)


if __name__ == "__main__":
    main()
