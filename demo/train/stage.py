"""One stage of the recipe."""

from collections.abc import Callable
from dataclasses import dataclass

from demo.train.workshop import Plan, Workshop


@dataclass(frozen=True)
class Stage:
    """One model of the recipe.

    Attributes:
        name: on the command line.
        output: folder or file below the models' folder; the stage is done when it is there.
        plan: how long it trains.
        run: trains and writes it.
    """

    name: str
    output: str
    plan: Plan
    run: Callable[["Stage", Workshop], None]
