"""A soak in tables, and whether its bars held."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.soak.faults import Happened, unexplained
from tests.soak.figures import Sample, growths
from tests.soak.judging import Probes
from tests.soak.ledger import OUTCOMES, Entry, Ledger, middle, percentile

SHOWN = 60  # failed requests; the file has all


@dataclass(frozen=True)
class Run:
    """All that a soak has seen.

    Attributes:
        busy: what was not at rest in the end.
    """

    minutes: float
    seed: int
    ledger: Ledger
    probes: Probes
    faults: Sequence[Happened]
    samples: Sequence[Sample]
    busy: dict[str, float]

    def broken(self) -> list[str]:
        """The bars that did not hold, each with its figure."""
        accounts = self.ledger.accounts()
        unbalanced = [kind for kind, account in accounts.items() if not account.balanced]
        failures = unexplained(self.ledger.of("failed"), self.faults)
        wrong = [e for e in self.ledger.of("failed") if _shape(e) == "wrong answer"]
        calm = [e for e in self.ledger.of("refused") if "503" in _shape(e) and not self.amid(e)]
        grown = [growth for growth in growths(self.samples) if not growth.flat]
        late = [fault.name for fault in self.faults if fault.recovered_at is None]
        bars: dict[str, Sequence[object]] = {
            "asked is not answered + cancelled + refused + failed": unbalanced,
            "failed without a fault that may cost it": failures,
            "wrong answers": wrong,
            "503 although nothing had happened": calm,
            "not recovered in time": late,
            "grown": grown,
            "not at rest in the end": list(self.busy),
        }
        return [f"{bar}: {len(found)}" for bar, found in bars.items() if found]

    def amid(self, entry: Entry) -> list[str]:
        """The faults that were felt while a request was under way."""
        return [fault.name for fault in self.faults if fault.covers(entry)]


def markdown(run: Run) -> str:
    """Everything, for people."""
    broken = run.broken()
    parts = [
        f"# Soak of {run.minutes:g} minutes, seed {run.seed}",
        "\n".join(f"- BROKEN: {bar}" for bar in broken) or "All bars held.",
        "## Requests\n\n" + _accounts(run.ledger),
        f"Pictures compared with an earlier one of the same request: {run.probes.repeated}; "
        f"a level apart: {run.probes.moved}.",
        "## Cancelled, refused and failed, by shape\n\n" + _shapes(run.ledger),
        "## Faults\n\n" + _faults(run),
        "## Failed\n\n" + _failed(run),
        "## Memory, handles, threads\n\n" + _growths(run.samples),
        "## Figures\n\n" + _figures(run.samples),
        "## At rest\n\n" + (f"left: {run.busy}" if run.busy else "nothing left"),
    ]
    return "\n\n".join(parts) + "\n"


def write_json(run: Run, path: Path) -> None:
    """The same for programs, with every failed request and every sample."""
    accounts = run.ledger.accounts()
    record = {
        "minutes": run.minutes,
        "seed": run.seed,
        "broken": run.broken(),
        "accounts": {
            kind: {
                "asked": account.asked,
                **{outcome: account.outcomes[outcome] for outcome in OUTCOMES},
                "shapes": dict(account.shapes),
                "p50_s": middle(account.seconds),
                "p95_s": percentile(account.seconds, 0.95),
            }
            for kind, account in accounts.items()
        },
        "faults": [asdict(f) | {"costs": sorted(f.costs)} for f in run.faults],
        "failed": [asdict(entry) | {"amid": run.amid(entry)} for entry in run.ledger.of("failed")],
        "growths": [asdict(growth) for growth in growths(run.samples)],
        "samples": [
            {
                "at": sample.at,
                "store_bytes": sample.store_bytes,
                "figures": dict(sample.figures),
                "uses": [asdict(p) | asdict(use) for p, use in sample.uses.items()],
            }
            for sample in run.samples
        ],
        "busy": run.busy,
    }
    path.write_text(json.dumps(record, indent=1))


def _accounts(ledger: Ledger) -> str:
    rows = [
        (
            kind,
            account.asked,
            *(account.outcomes[outcome] for outcome in OUTCOMES),
            "yes" if account.balanced else "NO",
            f"{middle(account.seconds):.2f}",
            f"{percentile(account.seconds, 0.95):.2f}",
        )
        for kind, account in ledger.accounts().items()
    ]
    sums = [sum(int(row[column]) for row in rows) for column in range(1, 6)]
    heads = ("kind", "asked", *OUTCOMES, "balanced", "p50, s", "p95, s")
    return table(heads, [*rows, ("all", *sums, "", "", "")])


def _shapes(ledger: Ledger) -> str:
    rows = [
        (kind, shape, count)
        for kind, account in ledger.accounts().items()
        for shape, count in account.shapes.most_common()
    ]
    return table(("kind", "shape", "times"), rows)


def _faults(run: Run) -> str:
    rows = []
    for fault in run.faults:
        felt = [entry for entry in run.ledger.entries if entry.ending and fault.covers(entry)]
        ends = [entry.ending.outcome for entry in felt if entry.ending]
        failed = sum(fault.explains(entry) for entry in felt if _outcome(entry) == "failed")
        back = "NOT IN TIME" if fault.recovered_at is None else f"{fault.recovered_at:.0f}"
        shown = (f"{fault.began_at:.0f}", f"{fault.ended_at:.0f}", back)
        slowest = max((e.seconds for e in felt if _outcome(e) == "answered"), default=0.0)
        counts = (len(felt), ends.count("refused"), failed, f"{slowest:.1f}")
        rows.append((fault.name, fault.detail, *shown, *counts))
    heads = ("fault", "of", "began, s", "ended, s", "whole again, s")
    felt_heads = ("requests meanwhile", "refused", "failed for it", "slowest answer, s")
    return table((*heads, *felt_heads), rows)


def _failed(run: Run) -> str:
    failed = unexplained(run.ledger.of("failed"), run.faults)
    failed += [entry for entry in run.ledger.of("failed") if entry not in failed]
    rows = [
        (
            f"{entry.asked_at:.1f}-{entry.ended_at or 0:.1f}",
            entry.kind,
            _shape(entry),
            "" if any(fault.explains(entry) for fault in run.faults) else "UNEXPLAINED",
            ", ".join(run.amid(entry)),
            entry.ending.detail.replace("\n", " ").replace("|", "/")[:160] if entry.ending else "",
            entry.ending.request_id if entry.ending else "",
        )
        for entry in failed[:SHOWN]
    ]
    heads = ("when, s", "kind", "shape", "", "amid", "what was said", "request")
    more = f"\n\nand {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
    return table(heads, rows) + more if rows else "nothing"


def _growths(samples: Sequence[Sample]) -> str:
    rows = [
        (g.of, g.quantity, f"{g.first:.0f}", f"{g.last:.0f}", "yes" if g.flat else "NO")
        for g in growths(samples)
    ]
    heads = ("of", "quantity", "first third", "last third", "flat")
    return table(heads, rows) if rows else "no process lived long enough to be judged"


def _figures(samples: Sequence[Sample]) -> str:
    known = [sample.figures for sample in samples if sample.figures]
    names = sorted({name for figures in known for name in figures if _is_gauge(name)})
    rows = []
    for name in names:
        values = [figures.get(name, 0.0) for figures in known]
        rows.append((name, *(f"{v:g}" for v in (middle(values), max(values), values[-1]))))
    return table(("figure, all replicas", "median", "highest", "last"), rows)


def _is_gauge(name: str) -> bool:
    return name.startswith("tcd_") and not name.endswith(("_total", "_bucket", "_created"))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _shape(entry: Entry) -> str:
    return entry.ending.shape if entry.ending else ""


def _outcome(entry: Entry) -> str:
    return entry.ending.outcome if entry.ending else ""
