"""When a job could be done that has just come. Told the time in seconds; no clock. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deployments.diffusion.engine.policy.batch import BatchKey
from deployments.diffusion.engine.policy.deadlines import Deadlines
from deployments.diffusion.engine.policy.trajectory import Status, Trajectory

MORE = 1.1  # times what goes before a job: what it is reckoned with when it is accepted
NEARLY = 1 + 1e-9  # sums of floats may be a little more


@dataclass(frozen=True)
class Foresight:
    """What the scheduler knows of its times.

    Attributes:
        call_s: what a call of each size that is held is thought to take, as full as it would be.
        row_s: what a UNet row takes in such a call, of sizes of which nearly full ones were timed.
        rows: UNet rows that a call of each of these sizes may have.
    """

    deadlines: Deadlines = field(default_factory=Deadlines)
    call_s: Mapping[BatchKey, float] = field(default_factory=dict)
    row_s: Mapping[BatchKey, float] = field(default_factory=dict)
    rows: Mapping[BatchKey, int] = field(default_factory=dict)

    def late_s(self, mine: Sequence[Trajectory], others: Iterable[Trajectory], now: float) -> float:
        """Seconds by which a job would hardly be done in time for what goes before it; 0: it may
        be, or would hardly be if it were alone.

        Before it goes what its caller's others still need whose priority is no lower and whose
        deadline is no later, of those who can be done in time themselves; nothing does if it and
        all of them have room in its own calls. It is longer for other callers, who take turns with
        this one, and for what waiting gives to others.

        Args:
            mine: the job's images, which are alike.
            others: its caller's.
        """
        last, mine_s, room_s = mine[-1], self.work_s(mine), self._room_s(mine[-1])
        spare_s = self._spare_s(last, now) - MORE * max(0.0, mine_s - room_s)
        if last.deadline is None or spare_s < 0:
            return 0.0
        ahead = [
            (row.deadline, row)
            for row in others
            if row.status is not Status.PREPARING
            and row.priority >= last.priority
            and row.deadline is not None
            and row.deadline <= last.deadline
        ]
        if self.work_s(row for _, row in ahead) + mine_s <= room_s * NEARLY:
            return 0.0
        before_s = 0.0
        for _, row in sorted(ahead, key=lambda one: one[0]):
            if self._spare_s(row, now + before_s) >= 0:
                before_s += self.work_s([row])
        return max(0.0, MORE * before_s - spare_s)

    def work_s(self, rows: Iterable[Trajectory]) -> float:
        """Seconds that images take, at least, of sizes that are known."""
        calls_s = sum(row.pending_unet_rows * self.row_s.get(row.key, 0.0) for row in rows)
        return calls_s * self.deadlines.slower

    def _room_s(self, row: Trajectory) -> float:
        """What a row's own calls take, as full as they may be; videos share none."""
        alike = 1 if row.key.frames else self.rows.get(row.key, 0) // row.unet_rows
        return max(1, alike) * self.work_s([row])

    def _spare_s(self, row: Trajectory, now: float) -> float:
        return self.deadlines.spare_at_once_s(row, now, self.call_s.get(row.key, 0.0))
