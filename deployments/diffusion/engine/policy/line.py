"""A caller's rows while a call is filled. No torch."""

from collections import deque
from collections.abc import Iterable

from deployments.contracts.places import Places
from deployments.diffusion.engine.policy.batch import BatchKey
from deployments.diffusion.engine.policy.trajectory import Trajectory


class Line:
    """Rows of one caller, in order, each looked at once: room and slots only get fewer while
    a call is filled, so that what did not fit does not fit later, either."""

    def __init__(self, rows: Iterable[Trajectory]) -> None:
        self._rows = deque(rows)
        self._passed: list[Trajectory] = []  # did not fit; they stand before `_rows`

    def __bool__(self) -> bool:
        """Whether any row is left."""
        return bool(self._passed or self._rows)

    @property
    def first(self) -> Trajectory:
        """The first of the rows that are left."""
        return self._passed[0] if self._passed else self._rows[0]

    def take(self, room: float, slots: Places) -> Trajectory | None:
        """The first row that has at most `room` UNet rows, and a slot or the right to one."""
        allowed = slots.allow(self.first.caller)
        while self._rows:
            row = self._rows.popleft()
            if row.unet_rows <= room and (allowed or row.slot is not None):
                return row
            self._passed.append(row)
        return None

    def able(self, slots: Places) -> bool:
        """Whether any row that is left has a slot, or the right to one."""
        allowed = slots.allow(self.first.caller)
        return any(allowed or row.slot is not None for row in (*self._passed, *self._rows))

    def of(self, key: BatchKey) -> "Line":
        """The rows that are left of this key."""
        return Line(row for row in (*self._passed, *self._rows) if row.key == key)
