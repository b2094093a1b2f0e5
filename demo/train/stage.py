"""One stage of the recipe."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from demo.train.card import Card
from demo.train.workshop import Plan, Trained, Workshop


@dataclass(frozen=True)
class Stage:
    """One model of the recipe.

    Attributes:
        name: on the command line.
        output: folder or file below the models' folder; the stage is done when it is there.
        plan: how long it trains.
        make: trains it and writes all but its card.
        goes_on: whether the finished model can be trained on: all that trains is in it, or is
            learned anew at once.
    """

    name: str
    output: str
    plan: Plan
    make: Callable[["Stage", Workshop], Card]
    goes_on: bool = False

    def run(self, shop: Workshop) -> None:
        """Train the model and write it with its card.

        Raises ValueError if it is to begin with a finished model, and there is none that it can.
        """
        if shop.from_finished:
            finished = self.finished(shop)
            if finished is None:
                raise ValueError(f"{self.name}: no finished model to train on")
            shop.remember(self.name, finished)
        self.make(self, shop).write(self.name, self.plan, shop.earlier(self.name))

    def finished(self, shop: Workshop) -> Trained | None:
        """How long the finished model was trained, if it is there and can be trained on."""
        output = shop.models / self.output
        if not self.goes_on or not output.exists():
            return None
        # The figures of its card: beside a file, in a folder, or for a base in the pipeline's.
        readme = "README.json"
        for file in (output.with_suffix(".json"), output / readme, output.parent / readme):
            if file.exists():
                figures = json.loads(file.read_text())
                if figures["stage"] == self.name:
                    return Trained(figures["steps"], figures["seconds"])
        return None
