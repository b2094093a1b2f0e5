"""Tables, records and plots of what was simulated."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from benchmarks.fleet.scenarios import Row
from benchmarks.fleet.simulation import Outcome
from benchmarks.report import percentile, print_table

HEADER = (
    "setting",
    "",
    "requests",
    "refused",
    "p50, p95, p99, s",
    "plain p95, s",
    "adapters loaded",
    "rows a call",
    "device busy",
    "device s an image",
    "ups, downs",
)


def record(row: Row) -> dict[str, object]:
    """A line for other programs."""
    outcome = row.outcome
    return {
        "scenario": row.scenario,
        "setting": row.setting,
        "way": row.way,
        "asked": outcome.asked,
        "answered": outcome.answered,
        "refused": outcome.refused,
        "seconds": {str(share): percentile(outcome.took, share) for share in (0.5, 0.95, 0.99)},
        "plain_p95_s": percentile(outcome.plain, 0.95),
        "loads": outcome.loads,
        "rows_per_call": outcome.rows / outcome.calls,
        "busy": outcome.busy_s / outcome.replica_s,
        "replica_s_per_image": outcome.replica_s / outcome.answered,
        "ups": outcome.ups,
        "downs": outcome.downs,
        "targets": outcome.targets,
    }


def _cells(row: Row) -> list[str]:
    outcome = row.outcome
    took = [f"{percentile(outcome.took, share):.2f}" for share in (0.5, 0.95, 0.99)]
    return [
        row.setting,
        row.way,
        f"{outcome.asked}",
        f"{outcome.refused}",
        ", ".join(took),
        f"{percentile(outcome.plain, 0.95):.2f}",
        f"{outcome.loads}",
        f"{outcome.rows / outcome.calls:.1f}",
        f"{outcome.busy_s / outcome.replica_s:.2f}",
        f"{outcome.replica_s / outcome.answered:.3f}",
        f"{outcome.ups}, {outcome.downs}",
    ]


def show(rows: Sequence[Row]) -> None:
    """A table of each scenario."""
    for scenario in dict.fromkeys(row.scenario for row in rows):
        print(f"{scenario}\n")
        print_table(HEADER, [_cells(row) for row in rows if row.scenario == scenario])


def save(rows: Sequence[Row], file: Path) -> None:
    """The records as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([record(row) for row in rows], indent=1) + "\n")


def plot(rows: Sequence[Row], folder: Path) -> None:
    """`fleet-routing.png` and `fleet-scaling.png`, of what there is."""
    folder.mkdir(parents=True, exist_ok=True)
    routed = [row for row in rows if row.setting.endswith(" replicas") and not row.outcome.targets]
    sizes = [row for row in routed if row.scenario.startswith("Poisson")]
    if sizes:
        _routing(sizes, folder / "fleet-routing.png")
    scaled = [row for row in rows if row.outcome.targets]
    if scaled:
        _scaling(scaled, folder / "fleet-scaling.png")


def _routing(rows: Sequence[Row], file: Path) -> None:
    mpl.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for way in dict.fromkeys(row.way for row in rows):
        own = [row for row in rows if row.way == way]
        sizes = [int(row.setting.split()[0]) for row in own]
        left.plot(sizes, [_loads(row.outcome) for row in own], "o-", label=way)
        right.plot(sizes, [percentile(row.outcome.took, 0.95) for row in own], "o-", label=way)
    titles = "adapters loaded, of requests that name one", "p95, s"
    for axes, title in zip((left, right), titles, strict=True):
        axes.set(xscale="log", xlabel="replicas", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    left.legend(title="router")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _loads(outcome: Outcome) -> float:
    return outcome.loads / max(1, len(outcome.adapted))


def _scaling(rows: Sequence[Row], file: Path) -> None:
    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4), layout="constrained")
    for row in rows:
        times, targets = zip(*row.outcome.targets, strict=True)
        axes.step(times, targets, where="post", label=f"{row.setting}, {row.way}")
    axes.set(xlabel="s", title="replicas wanted")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
