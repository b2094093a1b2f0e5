"""Which rows take the next step together. Policy only: no torch, no threads, and told the time.

Between callers the device is shared by work (`turns.py`), so that a flood of one delays another by
its share and no more. Among the rows of one caller the order is: effective priority, then deadline,
which is arrival where all have as much time, then arrival.
A row gains one level of effective priority whenever the work done for others since it came is
`aging_steps` times its own, and keeps it. So none waits for ever, not behind higher priorities and
not behind another image size; and what is soon done waits for less of what takes long, as in
scheduling by the highest response ratio (Brinch Hansen 1971). Who would hardly be done within its
deadline any more goes after all others of its priority, and has gained nothing by waiting: where
more is asked than can be done, the device does not work for those who will have gone
(`deadlines.py`). Nor has a caller turns none of whose rows can be done in time any more, while
others' can.

The next batch is led by the first row of the caller whose turn it is, and filled with rows of the
same key, always of the caller who stands lowest. Nobody rides along who would get ahead of
a caller who cannot use more of the call: one whose rows of this key are all in it, or who has
just come and whose first row is being made ready. Nor who is a call of its own ahead of the one
who leads: whatever others weigh, and however many there are, no caller is ever more than two calls
of its own ahead of whoever could run. A call that waits for nobody is full; one that others ride
in takes at most as much longer as they weigh.

While others are about, the background has a share of the time (`background.py`), and a call has
one row of each of its callers at most: whoever comes waits for the shortest call that there is.

Rows get slots in that order, somewhat ahead of their first step: their prompts and pictures are
encoded meanwhile.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import inf

from configs.app import Limits
from deployments.contracts.places import Places
from deployments.diffusion.engine.policy.background import Background
from deployments.diffusion.engine.policy.batch import Advanced, Batch, BatchKey, Outcome
from deployments.diffusion.engine.policy.deadlines import Deadlines, call_s
from deployments.diffusion.engine.policy.estimate import Work
from deployments.diffusion.engine.policy.foresight import Foresight
from deployments.diffusion.engine.policy.line import Line
from deployments.diffusion.engine.policy.tempo import Curve, Tempo
from deployments.diffusion.engine.policy.trajectory import Status, Trajectory
from deployments.diffusion.engine.policy.turns import Turns

RECOVERY_STEPS = 64
BATCHES_AHEAD = 2
CALLS_TO_GET_READY = 4  # for which a newcomer's claim is kept: calls of one row are short


@dataclass
class _Bound:
    """What a batch of one image size may have: latent pixels. `steps`: those without trouble."""

    pixels: int
    steps: int = 0


class Scheduler:
    """Holds every trajectory from `add` until it is finished, failed or aborted.

    `limits.max_batch` bounds the UNet rows of a batch, `limits.max_running` the slots (between
    callers as `Places` has it), `limits.max_step_ms` the time of a UNet call: one who comes waits
    for at most one. A row alone runs however long it takes. Below these bounds a batch is no
    larger than pays: what a larger one would not do faster is done one after the other, so that
    the first are done sooner.
    Running out of memory halves the latent pixels that a batch of that image size may have; every
    `RECOVERY_STEPS` steps of that size without it give one row back.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._live: dict[str, Trajectory] = {}
        self._arrivals = 0
        self._turns = Turns()
        self._tempo = Tempo()
        self._bounds: dict[BatchKey, _Bound] = {}  # of sizes that ran out of memory
        self._at_once = 1  # rows of the size that was last in turn
        self._background = Background(limits.background_share)
        self._deadlines = Deadlines()
        # Of each size that is held: what calls take, if it was timed itself; rows that a call may
        # have, and has for the sake of those that are held; what it takes as full as it would be.
        self._curves: dict[BatchKey, Curve] = {}
        self._rows: dict[BatchKey, int] = {}
        self._full: dict[BatchKey, float] = {}
        self._call_s: dict[BatchKey, float] = {}
        self._now = 0.0  # when this turn began
        self._last: tuple[Batch, float] | None = None  # the batch before, and when it was asked for

    @property
    def batch_limit(self) -> int:
        """UNet rows that memory allows a batch, of the size that may have fewest."""
        learnt = (bound.pixels // key.pixels for key, bound in self._bounds.items())
        return min([self._limits.max_batch, *learnt])

    @property
    def live(self) -> tuple[Trajectory, ...]:
        """All trajectories held, in order of arrival."""
        return tuple(self._live.values())

    @property
    def running(self) -> int:
        """Trajectories that hold a slot."""
        return len(self._used_slots())

    @property
    def foresight(self) -> Foresight:
        """What is known of its times by now."""
        row_s = {key: self._tempo.row_s(key, self._full[key]) for key in self._rows}
        return Foresight(self._deadlines, self._call_s, row_s, self._rows, self._curves)

    @property
    def pending_unet_rows(self) -> int:
        """UNet rows still to be computed for all trajectories held."""
        return sum(row.pending_unet_rows for row in self._live.values())

    @property
    def work(self) -> Work:
        """What the rows held still need, for an estimate of the time."""
        rows = self._live.values()
        tags = self._tags(self.live)
        order = sorted(rows, key=lambda row: (tags[row.caller.name], *self._order(row)))
        if order:
            self._at_once = self.limit_of(order[0].key)
        return Work(
            rows=len(rows),
            unet_pixels=sum(row.pending_pixels for row in rows),
            until_first=_pixels_until_first(order, self._at_once),
            row_pixels=sum(row.decode_pixels for row in rows),
            at_once=self._at_once,
        )

    def limit_of(self, key: BatchKey) -> int:
        """UNet rows that a batch of this size may have."""
        most = self._limits.max_batch
        if (bound := self._bounds.get(key)) is not None:
            most = min(most, bound.pixels // key.pixels)
        if self._limits.max_step_ms == inf:
            return most
        in_time = self._tempo.curve(key).rows_within(self._limits.max_step_ms / 1e3)
        return int(min(most, self._tempo.rows_worth(key), max(1, in_time)))

    def reconfigure(self, limits: Limits) -> None:
        """Takes new bounds. Fewer slots take effect as running rows leave theirs."""
        self._limits = limits
        self._background.share = limits.background_share
        self._bounds.clear()

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

    def joining(self, now: float, after_s: float = 0.0) -> tuple[Trajectory, ...]:
        """Gives slots to rows that may soon run; each is to be made ready, then `joined`.

        They are those of the next `BATCHES_AHEAD` batches as `schedule` would fill them.
        `after_s`: as for that.
        """
        able = self._able()
        slots = self._slots(able)
        waiting = {row.caller for row in able if row.status is Status.WAITING}
        if not any(slots.allow(caller) for caller in waiting):
            return ()
        self._look(now, after_s)
        left = self._candidates()
        tags = self._tags(left)
        given: list[Trajectory] = []
        for _ in range(BATCHES_AHEAD):
            batch = self._filled(left, tags, slots)
            given += [row for row in batch if row.status is Status.WAITING]
            filled = set(batch)
            left = [row for row in left if row not in filled]
        used = self._used_slots()
        free = (slot for slot in count() if slot not in used)
        for row in given:
            row.slot, row.status = next(free), Status.JOINING
        return tuple(given)

    def joined(self, row_id: str) -> Trajectory | None:
        """A row is ready to take steps; `None` if it has left meanwhile."""
        row = self._live.get(row_id)
        if row is not None:
            row.status = Status.RUNNING
        return row

    def postpone(self, row_id: str) -> bool:
        """A row found no memory while it was made ready: it gives its slot back and waits. False
        if that happened before, or it is not held."""
        row = self._live.get(row_id)
        if row is None or row.short_of_memory:
            return False
        row.slot, row.status, row.short_of_memory = None, Status.WAITING, True
        return True

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

    @property
    def resumes(self) -> float | None:
        """When rows may run that could if they did not rest; `None` if there are none."""
        if any(row.status is Status.RUNNING for row in self._live.values()):
            return self._background.resumes(self._now)
        return None

    def schedule(self, now: float, after_s: float = 0.0) -> Batch | None:
        """The next batch; `None` if no row can run now. `after_s`: seconds from a row's last call
        until its image is answered, of late."""
        if self._last is not None:
            before, at = self._last
            took_s = self._tempo.seconds_of(before.key, before.unet_rows)
            self._deadlines.turned(now - at, took_s)
        self._look(now, after_s)
        batch = self._next()
        self._last = None if batch is None else (batch, now)
        return batch

    def _look(self, now: float, after_s: float) -> None:
        """It is now: how long calls would take, and how full they may be for whoever may run."""
        self._now, self._deadlines.after_s = now, after_s
        held: Counter[BatchKey] = Counter()
        largest: dict[BatchKey, int] = {}  # row, which runs even where it alone does not fit
        able = self._able()
        for row in able:
            held[row.key] += row.unet_rows
            largest[row.key] = max(row.unet_rows, largest.get(row.key, 0))
        self._rows = {key: self.limit_of(key) for key in held}
        self._curves = {key: self._tempo.curve(key) for key in held if self._tempo.knows(key)}
        widest = dict.fromkeys(held, 0.0)
        for row in able:
            curve = self._curves.get(row.key)
            if row.call_rows is None and curve is not None:
                row.call_rows = self._deadlines.call_rows(row, now, curve, self._rows[row.key])
            widest[row.key] = max(widest[row.key], row.call_rows or inf)
        self._full = {key: min(most, widest[key]) for key, most in self._rows.items()}
        self._call_s = {
            key: self._tempo.seconds_of(key, key.frames or max(largest[key], min(held[key], most)))
            for key, most in self._rows.items()
        }

    def _next(self) -> Batch | None:
        now = self._now
        if not all(row.caller.background for row in self._live.values()):
            self._background.others(now)
        candidates = self._candidates()
        rests = self._background.rests(now)
        running = [
            row
            for row in candidates
            if row.status is Status.RUNNING and not (rests and row.caller.background)
        ]
        if not running:
            return None
        running = self._with_hope(running)
        tags = self._tags(candidates)
        present = {row.caller.name for row in running}
        claims = [
            tags[row.caller.name]
            for row in candidates
            if row.status is Status.JOINING
            and not (rests and row.caller.background)
            and row.caller.name not in present
            and row.passed_over < CALLS_TO_GET_READY
        ]
        chosen = self._filled(running, tags, self._slots(running), min(claims, default=inf))
        batch = Batch(chosen[0].key, tuple(chosen))
        for row in set(candidates) - set(chosen):
            row.passed_over += 1
            row.work_before += batch.pixels
        for row in chosen:
            row.passed_over = 0
        return batch

    def _with_hope(self, running: list[Trajectory]) -> list[Trajectory]:
        """Without those of callers none of whose rows can be done in time any more, not in calls of
        its own, while others' can; to the background, which has time, none of them gives way."""
        hope: set[str] = set()
        for row in running:
            if row.caller.background or row.caller.name in hope:
                continue
            alone_s = self._tempo.seconds_of(row.key, row.unet_rows)
            if not self._deadlines.lost(row, self._now, alone_s):
                hope.add(row.caller.name)
        if not hope:
            return running
        return [row for row in running if row.caller.background or row.caller.name in hope]

    def advance(self, batch: Batch, outcome: Outcome) -> tuple[Trajectory, ...]:
        """Books how a batch ended; returns the rows that left: finished or failed.

        Out of memory books nothing but a smaller bound. A single row fails the second time in a
        row: the first time something else may have held the memory.
        """
        if not isinstance(outcome, Advanced):
            return self._out_of_memory(batch)
        self._turns.charge(batch)
        self._recover(batch.key)
        if outcome.measured is not None:
            self._tempo.measure(outcome.measured)
        behind = sum(row.call_pixels for row in batch.rows if row.caller.background)
        took = self._tempo.seconds_of(batch.key, batch.unet_rows)
        self._background.had(took * behind / batch.pixels, self._now)
        left: list[Trajectory] = []
        for row in batch.rows:
            row.short_of_memory = False
            if row.row_id in outcome.failures:
                self._leave(row, Status.FAILED)
                left.append(row)
                continue
            row.advance()
            if row.cursor == row.steps:
                self._leave(row, Status.FINISHED)
                left.append(row)
        return tuple(left)

    def beside(self, row: Trajectory, seconds: float) -> None:
        """The VAE has something to do for a row beside its steps, and is thought to take so long:
        it begins with a picture, is shown on the way, or has come to its end."""
        if row.caller.background:
            self._background.had(seconds, self._now)

    def _out_of_memory(self, batch: Batch) -> tuple[Trajectory, ...]:
        first, *others = batch.rows
        if not others:
            if first.short_of_memory:
                self._leave(first, Status.FAILED)
                return (first,)
            first.short_of_memory = True
            return ()
        self._bounds[batch.key] = _Bound(max(batch.key.pixels, batch.pixels // 2))
        return ()

    def _recover(self, key: BatchKey) -> None:
        bound = self._bounds.get(key)
        if bound is None:
            return
        bound.steps += 1
        if bound.steps % RECOVERY_STEPS == 0:
            bound.pixels += key.pixels
        if bound.pixels >= self._limits.max_batch * key.pixels:
            del self._bounds[key]

    def _able(self) -> list[Trajectory]:
        """All rows that may run now or soon."""
        return [row for row in self._live.values() if row.status is not Status.PREPARING]

    def _candidates(self) -> list[Trajectory]:
        """Likewise, in the order that holds within a caller."""
        return sorted(self._able(), key=self._order)

    def _tags(self, rows: Sequence[Trajectory]) -> dict[str, float]:
        return {row.caller.name: self._turns.tag(row.caller) for row in rows}

    def _slots(self, rows: Sequence[Trajectory]) -> Places:
        held = ((row.caller, int(row.slot is not None)) for row in rows)
        return Places(self._limits.max_running, held)

    def _filled(
        self,
        rows: Sequence[Trajectory],
        tags: dict[str, float],
        slots: Places,
        claim: float = inf,
    ) -> list[Trajectory]:
        """The rows of the next batch, of `rows` in order.

        Args:
            tags: of their callers; charged with what is taken.
            slots: for rows that have none; charged, too.
            claim: lowest tag of the callers who have just come: nobody rides along from there on.
        """
        held: dict[str, list[Trajectory]] = {}  # by caller
        about = self._background.about(self._now)
        for one in rows:
            line = held.setdefault(one.caller.name, [])
            if not (about and one.caller.background and line):
                line.append(one)
        left = {name: Line(line) for name, line in held.items()}
        taken: list[Trajectory] = []
        room = inf  # a guided row runs even where only one row fits: it cannot be split
        while left:
            name = min(left, key=lambda name: (tags[name], left[name].first.arrival))
            if taken and tags[name] >= claim:
                break
            row = left[name].take(room, slots)
            if row is None:
                claim = min(claim, tags[name]) if left[name].able(slots) else claim
                del left[name]
                continue
            if not taken:
                room = min(self.limit_of(row.key), row.call_rows or inf)
                left = self._sharing(row, tags, left, room * row.key.pixels)
            taken.append(row)
            tags[name] += row.charge
            room -= row.unet_rows
            if row.slot is None:
                slots.take(row.caller)
            if room <= 0 or row.key.frames is not None:
                break
            if not left[name]:
                del left[name]
                if not (about and row.caller.background):  # whose others are held back
                    claim = min(claim, tags[name])
        return taken

    def _sharing(
        self, first: Trajectory, tags: dict[str, float], left: dict[str, Line], pixels: float
    ) -> dict[str, Line]:
        """What may be in a call of so many pixels beside its first row: all that its caller has of
        this key, and what others have who are not a call ahead of that caller."""
        turn, leader = tags[first.caller.name], first.caller.name
        alike = {name: line.of(first.key) for name, line in left.items()}
        return {
            name: line
            for name, line in alike.items()
            if name == leader or (line and tags[name] <= turn + pixels / line.first.caller.weight)
        }

    def _used_slots(self) -> set[int]:
        return {row.slot for row in self._live.values() if row.slot is not None}

    def _order(self, row: Trajectory) -> tuple[int, bool, float, int]:
        late, deadline = self._deadlines.order(row, self._now, self._call_s_of(row))
        level = row.priority if late else row.level(self._limits.aging_steps)
        return (-level, late, deadline, row.arrival)

    def _call_s_of(self, row: Trajectory) -> float:
        """What a call is thought to take that a row would be in."""
        most, full_s = self._rows.get(row.key, 0), self._call_s.get(row.key, 0.0)
        return call_s(row.call_rows, most, full_s, self._curves.get(row.key, Curve()))

    def _leave(self, row: Trajectory, status: Status) -> None:
        del self._live[row.row_id]
        row.status = status
        if not self._live:
            self._turns.reset()


def _pixels_until_first(order: Sequence[Trajectory], at_once: int) -> int:
    """Latent pixels to compute before the first of these rows has left."""
    if not order:
        return 0
    batch = [row for row in order if row.key == order[0].key][:at_once]
    return min(row.pending_calls for row in batch) * sum(row.call_pixels for row in batch)
