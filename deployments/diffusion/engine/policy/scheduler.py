"""Which rows take the next step together. Policy only: no torch, no clock, no threads.

The next batch is led by the row that is first in order, and filled with rows of the same
key in that order. The order is: effective priority, then arrival. A row that a schedule
passes over gains one level of effective priority every `aging_steps` schedules, so
none waits for ever: not behind higher priorities, and not behind another image size.
"""

from configs.app import Limits
from deployments.diffusion.engine.policy.batch import Advanced, Batch, Outcome
from deployments.diffusion.engine.policy.trajectory import Status, Trajectory

RECOVERY_STEPS = 64


class Scheduler:
    """Holds every trajectory from `add` until it is finished, failed or aborted.

    `limits.max_batch` bounds the UNet rows of a batch, `limits.max_running` the slots.
    Running out of memory halves the bound on the batch; every `RECOVERY_STEPS` steps without
    it give one row back.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._live: dict[str, Trajectory] = {}
        self._arrivals = 0
        self._steps_without_oom = 0
        self.batch_limit = limits.max_batch

    @property
    def live(self) -> tuple[Trajectory, ...]:
        """All trajectories held, in order of arrival."""
        return tuple(self._live.values())

    @property
    def running(self) -> int:
        """Trajectories that hold a slot."""
        return len(self._used_slots())

    @property
    def pending_unet_rows(self) -> int:
        """UNet rows still to be computed for all trajectories held."""
        return sum(row.pending_unet_rows for row in self._live.values())

    @property
    def pending_pixels(self) -> int:
        """Latent pixels of those rows."""
        return sum(row.pending_pixels for row in self._live.values())

    def reconfigure(self, limits: Limits) -> None:
        """Takes new bounds. Fewer slots take effect as running rows leave theirs."""
        self._limits = limits
        self.batch_limit = limits.max_batch

    def add(self, row: Trajectory) -> None:
        """Takes a trajectory in. Its id must be new."""
        if row.row_id in self._live:
            raise ValueError(f"row {row.row_id} is already scheduled")
        row.arrival = self._arrivals
        self._arrivals += 1
        self._live[row.row_id] = row

    def ready(self, row_id: str) -> None:
        """The adapters of a preparing trajectory have come: it may run."""
        row = self._live.get(row_id)
        if row is not None and row.status is Status.PREPARING:
            row.status = Status.WAITING

    def abort(self, row_id: str, status: Status = Status.ABORTED) -> Trajectory | None:
        """Lets a trajectory go, from wherever it stands; `None` if it is not held.

        The trajectory keeps its `slot` number so that the caller can free device memory.
        """
        row = self._live.get(row_id)
        if row is not None:
            self._leave(row, status)
        return row

    def expired(self, now: float) -> tuple[Trajectory, ...]:
        """Trajectories whose deadline is not after `now`."""
        return tuple(
            row for row in self._live.values() if row.deadline is not None and row.deadline <= now
        )

    def schedule(self) -> Batch | None:
        """The next batch, each of its rows with a slot; `None` if no row can run."""
        candidates = sorted(
            (row for row in self._live.values() if row.status is not Status.PREPARING),
            key=self._order,
        )
        used = self._used_slots()
        free_slots = [slot for slot in range(self._limits.max_running) if slot not in used]
        # After `reconfigure` to fewer slots, rows that hold higher ones count as well.
        del free_slots[max(0, self._limits.max_running - len(used)) :]
        chosen: list[Trajectory] = []
        room = self.batch_limit
        for row in candidates:
            if chosen and (row.key != chosen[0].key or row.key.frames is not None):
                continue
            # A guided row runs even where only one row fits: it cannot be split.
            if row.unet_rows > room and chosen:
                continue
            if row.slot is None:
                if not free_slots:
                    continue
                row.slot = free_slots.pop(0)
                row.status = Status.RUNNING
            chosen.append(row)
            room -= row.unet_rows
            if room <= 0:
                break
        for row in candidates:
            row.passed_over += 1
        for row in chosen:
            row.passed_over = 0
        return Batch(chosen[0].key, tuple(chosen)) if chosen else None

    def advance(self, batch: Batch, outcome: Outcome) -> tuple[Trajectory, ...]:
        """Books how a batch ended; returns the rows that left: finished or failed.

        Out of memory books nothing but a smaller bound, unless the batch was a single row:
        that row fails.
        """
        if not isinstance(outcome, Advanced):
            self._steps_without_oom = 0
            if len(batch.rows) > 1:
                self.batch_limit = max(1, batch.unet_rows // 2)
                return ()
            self._leave(batch.rows[0], Status.FAILED)
            return batch.rows
        self._steps_without_oom += 1
        if self._steps_without_oom % RECOVERY_STEPS == 0:
            self.batch_limit = min(self.batch_limit + 1, self._limits.max_batch)
        left: list[Trajectory] = []
        for row in batch.rows:
            if row.row_id in outcome.failures:
                self._leave(row, Status.FAILED)
                left.append(row)
                continue
            row.cursor += 1
            if row.cursor == row.steps:
                self._leave(row, Status.FINISHED)
                left.append(row)
        return tuple(left)

    def pixels_until_room(self, rows: int) -> int:
        """Estimate of the latent pixels to compute before `rows` of those held have left."""
        batch = sorted(self._live.values(), key=self._order)[: self.batch_limit]
        if rows > len(batch):
            return self.pending_pixels * rows // max(1, len(self._live))
        steps = sorted(row.steps - row.cursor for row in batch)[rows - 1]
        return steps * sum(row.unet_rows * row.key.pixels for row in batch)

    def _used_slots(self) -> set[int]:
        return {row.slot for row in self._live.values() if row.slot is not None}

    def _order(self, row: Trajectory) -> tuple[int, int]:
        return (-(row.priority + row.passed_over // self._limits.aging_steps), row.arrival)

    def _leave(self, row: Trajectory, status: Status) -> None:
        del self._live[row.row_id]
        row.status = status
