"""How UNet calls are made, and what became of what should have been compiled. No torch."""

from typing import NamedTuple


class Compiling(NamedTuple):
    """What became of a model's `compile`.

    Attributes:
        level: 0: calls are eager; 1: blocks run compiled; 2: and there are graphs.
        compiles: kinds of blocks that were compiled.
        failures: compilations and captures that failed.
        replays: calls that replayed a graph.
    """

    level: int = 0
    compiles: int = 0
    failures: int = 0
    replays: int = 0


EAGER = Compiling()
