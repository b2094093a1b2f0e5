"""`make check-config`: everything that is wrong with a Serve config, before it is deployed.

    python -m graphs.check serve_config.yaml ...
    python -m graphs.check --offline serve_config.yaml
    python -m graphs.check --nodes serve_config.yaml

Ray ignores what it does not know in a Serve config, and some mistakes it finds only once the
change has begun. Files are looked at on this machine, and with `--nodes` on those of the cluster;
the hub and S3 are asked whether what is named there exists.
"""

import argparse
import sys
from pathlib import Path

from ray.serve.schema import ServeDeploySchema

from graphs.check.collections import counted
from graphs.check.config import (
    Unreadable,
    advice_of,
    applications_of,
    problems_of,
    read_yaml,
    written,
)
from graphs.check.findings import Findings
from graphs.check.lookup import look_up, not_here
from graphs.check.nodes import NoCluster, look_at_nodes


def main() -> None:
    """The command line. Exits with 1 if anything is wrong; advice, of a file with which nothing
    is, does not count."""
    parser = argparse.ArgumentParser(
        prog="python -m graphs.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG")
    parser.add_argument(
        "--offline",
        action="store_true",
        help="ask neither the hub nor S3; say what a start on this machine would fetch",
    )
    parser.add_argument(
        "--nodes", action="store_true", help="look at files on the nodes of the cluster"
    )
    parser.add_argument(
        "--address", default="auto", help="of the cluster; RAY_ADDRESS, or that of this machine"
    )
    asked = parser.parse_args()
    wrong = False
    for path in asked.configs:
        found = _on_nodes(path, asked.address) if asked.nodes else Findings(list(problems_of(path)))
        advised: list[str] = []
        if not found.wrong:
            applications = list(applications_of(read_yaml(path)))
            if asked.offline:
                advised += [f"would be fetched: {line}" for line in not_here(applications)]
            else:
                look_up(applications, found)
            advised += counted(applications, found, s3=not asked.offline, machine=not asked.nodes)
            advised += [f"advice: {line}" for line in advice_of(path, machine=not asked.nodes)]
        wrong = wrong or bool(found.wrong)
        lines = [*found.wrong, *(f"unknown: {line}" for line in found.unknown), *advised]
        for line in lines or ("as it should be",):
            print(f"{path}: {line}")
    sys.exit(1 if wrong else 0)


def _on_nodes(path: Path, address: str) -> Findings:
    """What is wrong with a file whose weights are looked at on a cluster's nodes."""
    try:
        config = read_yaml(path)
        found = Findings(list(written(config)))
        if not found.wrong:
            found = look_at_nodes(ServeDeploySchema.model_validate(config), address)
    except (Unreadable, NoCluster) as error:
        return Findings([str(error)])
    return found


if __name__ == "__main__":
    main()
