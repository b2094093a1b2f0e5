"""A fleet in virtual time: the project's router, scheduler, admission and autoscaling policy.

python -m benchmarks.fleet [--quick | --long] [--only routing] [--json FILE] [--plots FOLDER]
"""

import argparse
from pathlib import Path
from time import monotonic

from benchmarks.fleet import report, scenarios


def main() -> None:
    """Prints a table for each scenario."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="about a minute")
    size.add_argument("--long", action="store_true", help="hours")
    parser.add_argument("--only", choices=list(scenarios.LONG), action="append")
    parser.add_argument("--json", type=Path, default=Path("out/fleet.json"))
    parser.add_argument("--plots", type=Path, help="folder for plots")
    args = parser.parse_args()
    chosen = scenarios.FULL
    if args.quick or args.long:
        chosen = scenarios.QUICK if args.quick else scenarios.LONG
    begun = monotonic()
    rows: list[scenarios.Row] = []
    for name, scenario in chosen.items():
        if args.only is None or name in args.only:
            mine = list(scenario())
            report.show(mine)
            rows += mine
            report.save(rows, args.json)
    if args.plots is not None:
        report.plot(rows, args.plots)
    print(f"{sum(row.outcome.asked for row in rows)} requests in {monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
