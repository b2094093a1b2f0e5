"""Model cards: what a trained model is, its data, steps, time, losses and licence."""

import json
from dataclasses import dataclass
from pathlib import Path

from demo.train.loop import Record
from demo.train.workshop import Plan, Trained

DATA = (
    "Pictures of 64 x 64 pixels, for sdxl of 128 x 128 too, drawn by `demo/world`: shaded balls, "
    "cubes, cones and cylinders in six colours and two sizes, one or two a scene, at rest, rolling "
    "or jumping, on snow, sand, grass or at night. Nothing was downloaded. A sixth of the "
    "combinations of shape, colour and background is held out of training."
)


@dataclass(frozen=True)
class Card:
    """What a stage has to say of the model that it made.

    Attributes:
        file: where the card goes; the figures go beside it as JSON.
        title, what: of the model.
        history: of its training.
    """

    file: Path
    title: str
    what: str
    history: list[Record]

    def write(self, stage: str, plan: Plan, earlier: Trained) -> None:
        """Write the card of the stage of this name and plan, which went on from a model that had
        been trained `earlier`."""
        last = self.history[-1]
        command, began = f"python -m demo.train --stage {stage}", ""
        if earlier.steps:
            command += " --further"
            began = f"; on from a finished model of {earlier.steps} steps"
        seconds = earlier.seconds + last.seconds
        losses = ", ".join(f"{name} {value:.4f}" for name, value in last.losses.items())
        sections = [
            "---\nlicense: apache-2.0\n---",
            f"# {self.title}\n{self.what}",
            f"## Data\n{DATA}",
            "## Training\n"
            f"- Command: `{command}`\n"
            f"- Steps: {last.step} of {plan.batch_size}, AdamW, learning rate "
            f"{plan.learning_rate:g} falling along a cosine, average of the weights with decay "
            f"{plan.ema_decay}{began}\n"
            f"- Time: {seconds / 60:.0f} minutes\n"
            f"- Losses at the end: {losses}",
            "## Measured\nSee `docs/quality.md`.",
            "## Limits\nIt knows its small world and nothing else.",
        ]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
        figures = {
            "stage": stage,
            "steps": earlier.steps + last.step,
            "seconds": round(seconds, 1),
            "losses": last.losses,
        }
        self.file.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
