"""`make check-config`: everything that is wrong with a Serve config, before it is deployed.

    python -m graphs.check serve_config.yaml ...

Ray ignores what it does not know in a Serve config, and some mistakes it finds only once the
change has begun.
"""

import argparse
import sys
from pathlib import Path

from graphs.check.config import advice_of, problems_of


def main() -> None:
    """The command line. Exits with 1 if anything is wrong; advice, of a file with which nothing
    is, does not count."""
    parser = argparse.ArgumentParser(prog="python -m graphs.check")
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG")
    wrong = 0
    for path in parser.parse_args().configs:
        found = list(problems_of(path))
        wrong += len(found)
        lines = found or [f"advice: {line}" for line in advice_of(path)] or ["as it should be"]
        print("\n".join(f"{path}: {line}" for line in lines))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
