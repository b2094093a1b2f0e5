"""Which rows can still be done in time. Told the time in seconds; no clock. No torch."""

from math import inf

from deployments.diffusion.engine.policy.estimate import SMOOTHING
from deployments.diffusion.engine.policy.tempo import Curve
from deployments.diffusion.engine.policy.trajectory import Trajectory

SPARE = 1.1  # times the calls that a row needs: what is reckoned with before its first
SPARE_CALLS = 2
BEFORE = 0.5  # times the calls that a row needs: those that are made before it has a slot
DEAREST = 1.5  # times what a row takes in full calls, in those that are smaller for its sake
LONGEST_TURN = 4  # times its call: more is a call that compiled, or a machine that stood still


def call_s(call_rows: float | None, most: int, full_s: float, curve: Curve) -> float:
    """What a call is thought to take that a row would be in; 0: nobody knows.

    Args:
        call_rows: that a call may have for its sake; `None`: as many as any.
        most: that any may have.
        full_s: what a call takes as full as it would be without.
    """
    if call_rows is None or call_rows >= most or not curve.known:
        return full_s
    return min(full_s, curve.seconds_of(call_rows))


class Deadlines:
    """What a row comes to if it has every call from now on.

    Attributes:
        after_s: seconds from a row's last call until its image is answered, of late.
        slower: times that a turn takes of its call, 1 or more.
        between_s: seconds of a turn that are not its call's: as long beside small ones, which are
            therefore not made ever smaller.
    """

    def __init__(self) -> None:
        self.after_s = 0.0
        self.slower = 1.0
        self.between_s = 0.0
        self._turn_s = self._call_s = 0.0  # of late

    def turned(self, seconds: float, call_s: float) -> None:
        """A turn took so long whose call is thought to take so long by itself: preparing rows, and
        whatever else has the processor, is in between. 0: nobody knows."""
        self._turn_s += SMOOTHING * (min(seconds, LONGEST_TURN * call_s) - self._turn_s)
        self._call_s += SMOOTHING * (call_s - self._call_s)
        self.between_s = max(0.0, self._turn_s - self._call_s)
        self.slower = max(1.0, self._turn_s / self._call_s) if self._call_s else 1.0

    def order(self, row: Trajectory, now: float, call_s: float) -> tuple[bool, float]:
        """Who goes first of rows that are alike: who is in time, and of these whose deadline comes
        first; of the late, whoever came first."""
        late = self.late(row, now, call_s)
        return late, 0.0 if late else inf if row.deadline is None else row.deadline

    def late(self, row: Trajectory, now: float, call_s: float) -> bool:
        """Whether a row would hardly be done in time; of one that has been begun, whether it would
        not."""
        return self.spare_s(row, now, call_s) < 0

    def spare_s(self, row: Trajectory, now: float, call_s: float) -> float:
        """Seconds that a row has to spare; below 0, it is late.

        Args:
            call_s: that a call of its size is thought to take, as full as it would be; 0 as above.
        """
        # Those who have a slot may be in the middle of their calls.
        return self._spare_s(row, now, call_s, BEFORE if row.slot is None else 0.0)

    def spare_at_once_s(self, row: Trajectory, now: float, call_s: float) -> float:
        """The same of a row that has its next call now."""
        return self._spare_s(row, now, call_s, 0.0)

    def lost(self, row: Trajectory, now: float, call_s: float) -> bool:
        """Whether a row would not be done in time if it had every call from now on, by the call."""
        if row.deadline is None:
            return False
        return self._left_s(row.deadline, now, row.pending_calls, call_s) < 0

    def call_rows(self, row: Trajectory, now: float, curve: Curve, most: int) -> float:
        """UNet rows of the largest calls in which a row is not late that may run from now on: in
        little time, full ones, of `most` rows, would make it late by themselves. Infinite: it is
        late in none, or in all that are worth it.
        """
        if row.deadline is None or row.key.frames is not None:
            return inf  # a video's calls are its own
        spare = min(SPARE_CALLS, row.pending_calls / 2)
        turn_s = (row.deadline - now - self.after_s) / self._calls(row, BEFORE, spare)
        rows = curve.rows_within(max(0.0, turn_s - self.between_s))
        if rows >= most or rows < row.unet_rows:
            return inf
        return rows if curve.row_s(rows) <= DEAREST * curve.row_s(most) else inf

    def _spare_s(self, row: Trajectory, now: float, call_s: float, before: float) -> float:
        if row.deadline is None or not call_s:
            return inf
        return self._left_s(row.deadline, now, self._calls(row, before, SPARE_CALLS), call_s)

    def _left_s(self, deadline: float, now: float, calls: float, call_s: float) -> float:
        """Seconds until the deadline after calls that take so long each, and what comes after."""
        return deadline - (now + calls * (call_s + self.between_s) + self.after_s)

    def _calls(self, row: Trajectory, before: float, spare: float) -> float:
        """Calls that a row is reckoned with."""
        pending = row.pending_calls
        return (1 + before) * pending if row.begun else (SPARE + before) * pending + spare
