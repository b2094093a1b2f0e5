"""One stage of the recipe."""

from collections.abc import Callable
from dataclasses import dataclass

from demo.train.card import Card
from demo.train.workshop import Plan, Workshop


@dataclass(frozen=True)
class Stage:
    """One model of the recipe.

    Attributes:
        name: on the command line.
        output: folder or file below the models' folder; the stage is done when it is there.
        plan: how long it trains.
        make: trains it and writes all but its card.
        goes_on: whether it can be trained on from its finished model, without a checkpoint.
    """

    name: str
    output: str
    plan: Plan
    make: Callable[["Stage", Workshop], Card]
    goes_on: bool = False

    def run(self, shop: Workshop) -> None:
        """Train the model and write it with its card."""
        self.make(self, shop).write(self.name, self.plan, further=shop.from_finished)
