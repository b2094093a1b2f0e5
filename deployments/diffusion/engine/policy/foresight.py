"""When a job could be done that has just come. Told the time in seconds; no clock. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from deployments.contracts.jobs import Caller
from deployments.diffusion.engine.policy.batch import BatchKey
from deployments.diffusion.engine.policy.deadlines import Deadlines, call_s
from deployments.diffusion.engine.policy.tempo import Curve
from deployments.diffusion.engine.policy.trajectory import Status, Trajectory

MORE = 1.1  # times what goes before a job: what it is reckoned with when it is accepted
NEARLY = 1 + 1e-9  # sums of floats may be a little more
ROUNDS = 8  # for what comes while what came meanwhile is done


class _Beside(NamedTuple):
    """Another caller: its weight beside that of the job's, seconds of work that are held of it, and
    the part of the device's time that it had of late."""

    weight: float
    held_s: float
    lately: float


@dataclass(frozen=True)
class Foresight:
    """What the scheduler knows of its times.

    Attributes:
        call_s: what a call of each size that is held is thought to take, as full as it would be.
        row_s: what a UNet row takes in such a call, of sizes of which nearly full ones were timed.
        rows: UNet rows that a call of each of these sizes may have.
        curves: what calls of these sizes take.
    """

    deadlines: Deadlines = field(default_factory=Deadlines)
    call_s: Mapping[BatchKey, float] = field(default_factory=dict)
    row_s: Mapping[BatchKey, float] = field(default_factory=dict)
    rows: Mapping[BatchKey, int] = field(default_factory=dict)
    curves: Mapping[BatchKey, Curve] = field(default_factory=dict)

    def late_s(
        self,
        mine: Sequence[Trajectory],
        held: Sequence[Trajectory],
        now: float,
        lately: Mapping[Caller, float] | None = None,
    ) -> float:
        """Seconds by which a job would hardly be done in time for what goes before it; 0: it may
        be, or would hardly be if it were alone.

        Before it goes what its caller's others still need whose priority is no lower and whose
        deadline is no later, and what other callers have in turns with that and with the job: of
        both, of those who can be done in time themselves or have been begun. Nothing does if all of
        it has room in the job's own calls. In so little time that these must not be full, all that
        is ahead counts, and has to have room there, or to fit before calls as full as they are now.
        Not reckoned with is what waiting gives to others, and whom the background waits for.

        Args:
            mine: the job's images, which are alike.
            held: of all callers.
            lately: parts of the device's time that callers had of late, and may have meanwhile.
        """
        last, mine_s = mine[-1], self.work_s(mine)
        call_rows = self._call_rows(last, now)
        room_s = self._room_s(last, call_rows)
        spare_s = self._spare_s(last, now, call_rows) - MORE * max(0.0, mine_s - room_s)
        little = call_rows < self.rows.get(last.key, 0)
        if last.deadline is None or (spare_s < 0 and not little):
            return 0.0
        able = [row for row in held if row.status is not Status.PREPARING]
        ahead = [
            (row.deadline, row)
            for row in able
            if row.caller.name == last.caller.name
            and row.priority >= last.priority
            and row.deadline is not None
            and row.deadline <= last.deadline
        ]
        others = [
            row
            for row in able
            if row.caller.name != last.caller.name and self._spare_s(row, now, row.call_rows) >= 0
        ]
        beside = self._beside(last.caller, others, lately or {})
        ahead_s, one_s = self.work_s(row for _, row in ahead), self.work_s([last])
        turns_s = _in_turns_s(ahead_s + mine_s, one_s, beside)
        beyond_s = ahead_s + mine_s + turns_s - room_s * NEARLY
        if beyond_s <= 0:
            return 0.0
        if little:
            spare_s = self._spare_s(last, now, None) - MORE * (mine_s - one_s)
            alone = not ahead_s + turns_s
            return 0.0 if alone or MORE * ahead_s + turns_s <= spare_s else beyond_s
        if MORE * ahead_s + turns_s <= spare_s:
            return 0.0
        before_s, longer = 0.0, 1 + turns_s / (ahead_s + mine_s)
        for _, row in sorted(ahead, key=lambda one: one[0]):
            then = now + before_s * longer
            if row.begun or self._spare_s(row, then, row.call_rows) >= 0:
                before_s += self.work_s([row])
        turns_s = _in_turns_s(before_s + mine_s, one_s, beside)
        return max(0.0, MORE * before_s + turns_s - spare_s)

    def work_s(self, rows: Iterable[Trajectory]) -> float:
        """Seconds that images take, at least, of sizes that are known."""
        return sum(row.pending_calls * self.turn_s(row) for row in rows)

    def turn_s(self, row: Trajectory) -> float:
        """Seconds that one call takes for an image, at least; 0: nobody knows."""
        return row.unet_rows * self.row_s.get(row.key, 0.0) * self.deadlines.slower

    def _beside(
        self, caller: Caller, rows: Sequence[Trajectory], lately: Mapping[Caller, float]
    ) -> list[_Beside]:
        """Those who take turns with a caller. `rows`: of others."""
        if caller.background:
            return []
        held_s: dict[str, float] = {}
        for row in rows:
            name = row.caller.name
            held_s[name] = held_s.get(name, 0.0) + self.work_s([row])
        callers = {row.caller.name: row.caller for row in rows} | {one.name: one for one in lately}
        return [
            _Beside(one.weight / caller.weight, held_s.get(name, 0.0), lately.get(one, 0.0))
            for name, one in callers.items()
            if name != caller.name and not one.background
        ]

    def _call_rows(self, row: Trajectory, now: float) -> float:
        most = self.rows.get(row.key, 0)
        return self.deadlines.call_rows(row, now, self.curves.get(row.key, Curve()), most)

    def _room_s(self, row: Trajectory, call_rows: float) -> float:
        """What a row's own calls take, as full as they may be; videos share none."""
        most = min(self.rows.get(row.key, 0), call_rows)
        alike = 1 if row.key.frames else most // row.unet_rows
        return max(1, alike) * self.work_s([row])

    def _spare_s(self, row: Trajectory, now: float, call_rows: float | None) -> float:
        most, full_s = self.rows.get(row.key, 0), self.call_s.get(row.key, 0.0)
        own_s = call_s(call_rows, most, full_s, self.curves.get(row.key, Curve()))
        return self.deadlines.spare_at_once_s(row, now, own_s)


def _in_turns_s(own_s: float, last_s: float, beside: Sequence[_Beside]) -> float:
    """Seconds that others have until a caller has had so many: what is held of them and what comes
    of them meanwhile, of each at most as much by weight; while the last of the caller's images has
    its own, half of that on average."""
    turns_s = 0.0
    for _ in range(ROUNDS if beside and own_s else 0):
        until_s = (own_s + turns_s) * (1 - last_s / own_s / 2)
        turns_s = sum(min(one.weight * own_s, one.held_s + one.lately * until_s) for one in beside)
    return turns_s
