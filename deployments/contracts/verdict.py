"""What a safety checker says of a picture, and what is made of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from deployments.contracts.jobs import Moderation

# What diffusers calls `adjustment`: added to the score of every concept.
ADJUSTMENT: Final[Mapping[Moderation, float]] = {"auto": 0.0, "low": -0.02}
SPECIAL_CARE = 0.01  # once a concept that calls for special care was found
DIGITS = 3  # to which diffusers rounds scores


@dataclass(frozen=True)
class Verdict:
    """How near a picture is to what is looked for.

    Attributes:
        concepts: of each concept the cosine similarity less the checkpoint's threshold, in its
            order.
        special: the same of the concepts that call for special care with the others. They block
            nothing by themselves.
    """

    concepts: tuple[float, ...]
    special: tuple[float, ...]

    def scores(self, moderation: Moderation) -> tuple[float, ...]:
        """Of each concept, as diffusers counts it; above 0: it is found."""
        adjustment = ADJUSTMENT[moderation]
        if any(round(margin + adjustment, DIGITS) > 0 for margin in self.special):
            adjustment += SPECIAL_CARE
        return tuple(round(margin + adjustment, DIGITS) for margin in self.concepts)

    def found(self, moderation: Moderation) -> tuple[int, ...]:
        """The concepts that are found, from 0; a picture with any is blocked."""
        scores = self.scores(moderation)
        return tuple(index for index, score in enumerate(scores) if score > 0)
