"""Which rows can still be done in time. Told the time in seconds; no clock. No torch."""

from collections.abc import Mapping

from deployments.diffusion.engine.policy.batch import BatchKey
from deployments.diffusion.engine.policy.trajectory import Trajectory

SPARE = 1.1  # times the calls that a row needs: what is reckoned with before its first
SPARE_CALLS = 2


class Deadlines:
    """What rows come to if they have every call from now on.

    Args:
        call_s: seconds that a call of each size is thought to take, full as it would be; 0: nobody
            knows.
    """

    def __init__(self, now: float, call_s: Mapping[BatchKey, float]) -> None:
        self._now, self._call_s = now, call_s

    def late(self, row: Trajectory) -> bool:
        """Whether it would hardly be done in time; of one that has been begun, whether it would
        not."""
        if row.deadline is None:
            return False
        calls: float = row.pending_calls
        if not row.begun:
            calls = SPARE * calls + SPARE_CALLS
        return self._now + calls * self._call_s[row.key] > row.deadline
