"""Teaches a base's text encoders to read captions, before its UNet listens to them.

Linear heads, not kept, tell from the states that the UNet will see which solids a caption
names, in its order, with their attributes, and the background. A UNet that trains with
encoders which know nothing spends most of its time on what is learned here in minutes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.train.loop import Task
from demo.train.model import TEXT_SHAPES, Base
from demo.world.caption import parse
from demo.world.scene import BACKGROUNDS, COLOURS, MOTIONS, PLACES, SHAPES, SIZES

UNSAID = 0
MOST_SOLIDS = 2
SOLID_CLASSES = tuple(1 + len(values) for values in (SHAPES, COLOURS, SIZES, PLACES))
CLASSES = SOLID_CLASSES * MOST_SOLIDS + (1 + len(MOTIONS), 1 + len(BACKGROUNDS))


def labels_of(text: str) -> list[int]:
    """What the heads should say: shape, colour, size, place of both solids; motion; background."""
    said = parse(text)
    labels: list[int] = []
    for solid in said.solids:
        labels += [
            1 + SHAPES.index(solid.shape),
            1 + COLOURS.index(solid.colour),
            UNSAID if solid.size is None else 1 + SIZES.index(solid.size),
            UNSAID if solid.place is None else 1 + PLACES.index(solid.place),
        ]
    labels += [UNSAID] * (len(SOLID_CLASSES) * (MOST_SOLIDS - len(said.solids)))
    labels.append(UNSAID if said.motion is None else 1 + MOTIONS.index(said.motion))
    return [*labels, UNSAID if said.background is None else 1 + BACKGROUNDS.index(said.background)]


class ReadingTask(Task):
    """Cross-entropy of the heads at the captions' ends, at a later token and of the pooled state.

    `ids` (n, encoders, 77) are the captions' token ids.
    """

    def __init__(self, base: Base, ids: Tensor, captions: Sequence[str], batch_size: int) -> None:
        self.base, self.ids, self.batch_size = base, ids, batch_size
        self.device = base.unet.device
        self.labels = torch.tensor([labels_of(text) for text in captions])
        widths = [shape.width for shape in TEXT_SHAPES[base.family]]
        self.heads = _heads(sum(widths)).to(self.device)
        self.pooled_heads = _heads(widths[-1]).to(self.device)
        heads = {"heads": self.heads, "pooled_heads": self.pooled_heads}
        self.trained = nn.ModuleDict({**base.text_encoders, **heads})

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch; "right" is the share of labels that are."""
        index = torch.randint(len(self.ids), (self.batch_size,), generator=generator)
        ids, labels = self.ids[index].to(self.device), self.labels[index].to(self.device)
        conditioning = self.base.encode(ids)
        rows = torch.arange(len(ids), device=self.device)
        ends = (ids[:, 0] == ids[:, 0].amax(1, keepdim=True)).int().argmax(1)
        share = torch.rand(len(ids), generator=generator).to(self.device)
        later = ends + (share * (ids.shape[2] - ends)).long()
        read = [(self.heads, conditioning.states[rows, at]) for at in (ends, later)]
        if conditioning.pooled is not None:
            read.append((self.pooled_heads, conditioning.pooled))
        losses, right = [], []
        for heads, states in read:
            for number, head in enumerate(heads):
                output = head(states).float()
                losses.append(functional.cross_entropy(output, labels[:, number]))
                right.append((output.argmax(1) == labels[:, number]).float().mean())
        return {"loss": torch.stack(losses).mean(), "right": torch.stack(right).mean()}


def _heads(width: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, classes) for classes in CLASSES)
