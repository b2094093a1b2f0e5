"""Where a job was in its engine, and for how long."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Stage = Literal["adapters", "queue", "condition", "steps", "decode"]
STAGES: tuple[Stage, ...] = get_args(Stage)  # in their order


class Span(NamedTuple):
    """A stage between two times: seconds of Unix time."""

    stage: Stage
    start: float
    end: float


@dataclass(frozen=True)
class Stages:
    """How long each stage of a job took, one after the other without a gap.

    adapters: until its style adapters were on the device (a job without any was not there).
    queue: until its first image had a place among those that are made.
    condition: until prompt and pictures of that were encoded, and its noise drawn.
    steps: until its last image had taken its last step. decode: until that was pixels.

    Attributes:
        engine: its name: of a service, its replica's.
        began_at: Unix time at which the engine took the job in.
        seconds: of the stages that the job came to, the last of which may not have ended.
    """

    engine: str
    began_at: float
    seconds: dict[Stage, float]

    def spans(self) -> Iterator[Span]:
        """The stages in order."""
        start = self.began_at
        for stage, seconds in self.seconds.items():
            yield Span(stage, start, start + seconds)
            start += seconds
