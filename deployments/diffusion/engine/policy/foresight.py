"""When a job could be done that has just come. Told the time in seconds; no clock. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from deployments.diffusion.engine.policy.batch import BatchKey
from deployments.diffusion.engine.policy.deadlines import Deadlines
from deployments.diffusion.engine.policy.trajectory import Status, Trajectory

MORE = 1.1  # times what goes before a job: what it is reckoned with when it is accepted


@dataclass(frozen=True)
class Foresight:
    """What the scheduler knows of its times.

    Attributes:
        call_s: what a call of each size that is held is thought to take, as full as it would be.
    """

    deadlines: Deadlines = field(default_factory=Deadlines)
    call_s: Mapping[BatchKey, float] = field(default_factory=dict)

    def late_s(
        self,
        mine: Sequence[Trajectory],
        others: Iterable[Trajectory],
        now: float,
        pixel_s: float,
    ) -> float:
        """Seconds by which a job would hardly be done in time for what goes before it; 0: it may
        be, or would not be if it were alone.

        Before it goes what its caller's others still need whose priority is no lower and whose
        deadline is no later, and who can be done in time themselves. It is longer for other
        callers, who take turns with this one, and for what waiting gives to others.

        Args:
            mine: the job's images, which are alike.
            others: its caller's.
            pixel_s: that a latent pixel takes in the UNet, of full calls.
        """
        last, siblings = mine[-1], sum(row.pending_pixels for row in mine[:-1])
        alone_s, pixel_s = self._spare_s(last, now), pixel_s * self.deadlines.slower
        if last.deadline is None or alone_s < siblings * pixel_s:
            return 0.0
        pixels = siblings + self._before(last, others, now, pixel_s)
        return max(0.0, MORE * pixels * pixel_s - alone_s)

    def _before(
        self, me: Trajectory, others: Iterable[Trajectory], now: float, pixel_s: float
    ) -> int:
        """Latent pixels that go before a row."""
        latest = inf if me.deadline is None else me.deadline
        ahead = [
            (row.deadline, row)
            for row in others
            if row.status is not Status.PREPARING
            and row.priority >= me.priority
            and row.deadline is not None
            and row.deadline <= latest
        ]
        pixels = 0
        for _, row in sorted(ahead, key=lambda one: one[0]):
            if self._spare_s(row, now + pixels * pixel_s) >= 0:
                pixels += row.pending_pixels
        return pixels

    def _spare_s(self, row: Trajectory, now: float) -> float:
        return self.deadlines.spare_s(row, now, self.call_s.get(row.key, 0.0))
