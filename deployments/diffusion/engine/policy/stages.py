"""Takes the time of a job's stages: a look at the clock whenever one ends."""

import time
from time import monotonic

from deployments.contracts.stages import STAGES, Stage, Stages


class StageClock:
    """Of one job. The engine's thread says when stages end; any thread may read it.

    On a GPU the host is up to two steps ahead of the device: what is left of them when the last
    step was given out counts as decoding.

    Args:
        styled: the job has adapters to wait for.
    """

    def __init__(self, *, styled: bool) -> None:
        self._began_at = time.time()
        self._began = monotonic()
        self._stages = STAGES if styled else STAGES[1:]
        self._ends: dict[Stage, float] = {}

    def begun(self, stage: Stage) -> None:
        """One of the job's images has come to a stage: the one before it ends with the first."""
        before = self._stages.index(stage) - 1
        if before >= 0:
            self._ends.setdefault(self._stages[before], monotonic())

    def ended(self, stage: Stage) -> None:
        """One of the job's images has left a stage: it ends with the last."""
        self._ends[stage] = monotonic()

    def read(self, engine: str) -> Stages:
        """The stages so far."""
        now, start = monotonic(), self._began
        seconds: dict[Stage, float] = {}
        for stage in self._stages:
            end = self._ends.get(stage)
            seconds[stage] = max(0.0, (now if end is None else end) - start)
            if end is None:
                break
            start = end
        return Stages(engine, self._began_at, seconds)
