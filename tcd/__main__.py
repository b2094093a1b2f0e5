"""`tcd`: what can be asked of the project at a command line.

tcd check style.safetensors ...
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.families import FAMILIES, FamilyName

EXIT_REFUSED = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tcd")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="say of adapters, checkpoints and VAEs what they are, and which models they are for",
    )
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    check.add_argument("--family", choices=list(FAMILIES), help="ask of this one alone")
    check.add_argument("--json", action="store_true", help="one line of JSON for each file")
    found = parser.parse_args(arguments)
    families: tuple[FamilyName, ...] = (found.family,) if found.family else tuple(FAMILIES)
    # Not before: torch takes seconds, and `--help` none.
    from tcd.check import check_files

    sys.exit(0 if check_files(found.files, families, as_json=found.json) else EXIT_REFUSED)


if __name__ == "__main__":
    main()
