"""Between callers the device is shared by work: no flood of one delays another beyond its share."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from statistics import mean

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from configs.app import Limits
from deployments.contracts.jobs import Caller
from deployments.contracts.places import Places
from deployments.diffusion.engine.policy.batch import Advanced, Batch, Measured, OutOfMemory
from deployments.diffusion.engine.policy.scheduler import CALLS_TO_GET_READY, Scheduler
from deployments.diffusion.engine.policy.spec import PromptIds, RowSpec
from deployments.diffusion.engine.policy.trajectory import Status, Trajectory

NO_TEXT = PromptIds(((),), 0)
FLOOD, OTHER = Caller("flood"), Caller("other")
CALLERS = (Caller("a"), Caller("b", 2.0), Caller("c", 0.5))
PIXEL_S = 1e-6  # that a call takes
names = count()


def row(
    caller: Caller,
    steps: int = 4,
    side: int = 64,
    *,
    guided: bool = False,
    priority: int = 0,
    frames: int | None = None,
) -> Trajectory:
    negative = NO_TEXT if guided else None
    spec = RowSpec(NO_TEXT, 0, side, side, steps, negative=negative, frames=frames)
    return Trajectory(f"{caller.name} {next(names)}", spec, priority, caller=caller)


def turn(scheduler: Scheduler, *, slowly: bool = False) -> Batch | None:
    """A turn of the engine. `slowly`: rows that get a slot are ready only for the next one. Calls
    take as long with many rows as with few: there are as many in them as may be."""
    joining = scheduler.joining(0.0)
    if not slowly:
        for one in joining:
            scheduler.joined(one.row_id)
    batch = scheduler.schedule(0.0)
    if batch is not None:
        took = PIXEL_S * batch.key.pixels
        scheduler.advance(batch, Advanced({}, Measured(batch.key, batch.unet_rows, took)))
    if slowly:
        for one in joining:
            scheduler.joined(one.row_id)
    return batch


def work_of(batch: Batch | None) -> int:
    return 0 if batch is None else batch.pixels


def kept_full(scheduler: Scheduler, make: Callable[[], Trajectory], rows: int = 72) -> None:
    """As many rows of a flood as its queue holds."""
    caller = make().caller
    for _ in range(rows - sum(one.caller == caller for one in scheduler.live)):
        scheduler.add(make())


def cost(
    scheduler: Scheduler, rows: Sequence[Trajectory], before: Callable[[], None]
) -> tuple[int, int]:
    """Calls, and latent pixels in them, until rows that come now are done."""
    for one in rows:
        scheduler.add(one)
    calls = pixels = 0
    while any(one.status is not Status.FINISHED for one in rows):
        before()
        batch = turn(scheduler, slowly=True)
        calls, pixels = calls + (batch is not None), pixels + work_of(batch)
    return calls, pixels


@pytest.mark.parametrize("limit", [1, 2, 8, 32])
def test_the_background_takes_no_places_that_others_need(limit: int) -> None:
    alone = Places(limit, [])
    while alone.allow(FLOOD.in_background):
        alone.take(FLOOD.in_background)
    held = sum(alone.allow(FLOOD, places) for places in range(1, 3 * limit))
    assert held == limit  # its owner finds as many as without
    while alone.allow(FLOOD):
        alone.take(FLOOD)
    others = 0
    while alone.allow(OTHER):
        alone.take(OTHER)
        others += 1
    assert others >= limit // 2
    assert not alone.allow(OTHER.in_background)


def test_one_of_the_background_may_have_many_images() -> None:
    places = Places(3, [])
    assert places.allow(FLOOD.in_background, 3)
    assert not places.allow(FLOOD.in_background, 4)
    places.take(FLOOD.in_background, 3)
    assert not places.allow(FLOOD.in_background)
    assert places.allow(OTHER)


def test_the_background_of_the_least_weight() -> None:
    assert Caller("a", 0.001).in_background.weight == pytest.approx(0.0001)


LIMITS = [
    Limits(),
    Limits(max_running=1),
    Limits(max_batch=2, max_running=4),
    Limits(max_batch=8),
]
NAMES = ["default", "one slot", "batch of 2", "batch of 8"]


@pytest.mark.parametrize("limits", LIMITS, ids=NAMES)
@pytest.mark.parametrize("side", [64, 128], ids="flood of {}".format)
@pytest.mark.parametrize("guided", [False, True])
def test_a_flood_at_most_doubles_the_work_before_another_is_done(
    limits: Limits, side: int, guided: bool
) -> None:
    """Of one call under way and one while the first row is made ready besides: neither can be
    taken back."""

    def flood() -> Trajectory:
        return row(FLOOD, 50, side, guided=guided, priority=10)

    alone_calls, alone = cost(Scheduler(limits), [row(OTHER)], lambda: None)
    scheduler = Scheduler(limits)
    for _ in range(60):
        kept_full(scheduler, flood)
        turn(scheduler)
    assert scheduler.running >= min(limits.max_running, 2 * limits.max_batch // flood().unet_rows)
    for pause in range(12):
        for _ in range(pause % 3):
            turn(scheduler)
        calls, pixels = cost(scheduler, [row(OTHER)], lambda: kept_full(scheduler, flood))
        one_row = flood().call_pixels
        assert calls <= 2 * alone_calls
        assert pixels <= 2 * alone + one_row


@pytest.mark.parametrize("limits", LIMITS, ids=NAMES)
def test_a_job_of_ten_beside_a_flood_takes_twice_its_work(limits: Limits) -> None:
    def flood() -> Trajectory:
        return row(FLOOD, 50, priority=10)

    _, alone = cost(Scheduler(limits), [row(OTHER) for _ in range(10)], lambda: None)
    scheduler = Scheduler(limits)
    for _ in range(60):
        kept_full(scheduler, flood)
        turn(scheduler)
    ten = [row(OTHER) for _ in range(10)]
    _, pixels = cost(scheduler, ten, lambda: kept_full(scheduler, flood))
    assert pixels <= 2 * alone + limits.max_batch * flood().call_pixels


def test_one_after_the_other_never_waits_for_two_calls_of_a_flood_of_large_images() -> None:
    """A caller whose images come one by one is idle between them, and is a newcomer each time."""
    scheduler = Scheduler(Limits(max_batch=8))
    large = 8 * row(FLOOD, side=256).call_pixels
    for _ in range(10):
        kept_full(scheduler, lambda: row(FLOOD, 50, 256))
        assert work_of(turn(scheduler)) == large, "nobody else is there: the call is full"
        scheduler.add(row(OTHER))
        assert work_of(turn(scheduler, slowly=True)) == large // 8, "its row is being made ready"
        batches = [turn(scheduler) for _ in range(4)]
        assert all(b is not None and b.rows[0].caller == OTHER for b in batches)


def test_a_newcomer_who_does_not_get_ready_holds_nobody_up() -> None:
    scheduler = Scheduler(Limits())
    kept_full(scheduler, lambda: row(FLOOD, 50))
    turn(scheduler)
    scheduler.add(row(OTHER))
    (joining,) = (one for one in scheduler.joining(0.0) if one.caller == OTHER)
    sizes = []
    for _ in range(CALLS_TO_GET_READY + 2):
        batch = scheduler.schedule(0.0)
        assert batch is not None
        scheduler.advance(batch, Advanced({}))
        sizes.append(len(batch.rows))
    assert joining.status is Status.JOINING
    assert sizes == [1] * CALLS_TO_GET_READY + [8, 8]


def test_callers_of_little_weight_bring_nobody_far_ahead_of_another() -> None:
    """Each leads a call in which a flood could ride, of a size of which the other has none."""
    scheduler = Scheduler(Limits(max_batch=4, max_running=64))
    sides = range(64, 128, 8)
    for side in sides:
        for _ in range(4):
            scheduler.add(row(FLOOD, 500, side))
    for _ in range(4):
        scheduler.add(row(OTHER, 500, 128))
    for _ in range(40):
        turn(scheduler)
    light = [row(Caller(f"light {side}", 0.01), 1, side) for side in sides]
    for one in light:
        scheduler.add(one)
    ahead, rides = [0], 0  # the flood's work between two calls of the other
    for _ in range(24):
        batch = turn(scheduler)
        assert batch is not None
        callers = {one.caller for one in batch.rows}
        rides += len(callers) > 1
        if OTHER in callers:
            ahead.append(0)
        ahead[-1] += sum(one.call_pixels for one in batch.rows if one.caller == FLOOD)
    assert all(one.status is Status.FINISHED for one in light)
    assert rides, "below the bound calls are shared"
    assert max(ahead) <= 2 * 4 * 15 * 15


def flooded(
    callers: Sequence[Caller], make: Callable[[Caller], Trajectory], calls: int, limits: Limits
) -> tuple[dict[Caller, float], float]:
    """Each caller's part of the work by its weight (1: exactly its share), and rows a call."""
    scheduler, work, rows = Scheduler(limits), Counter[Caller](), 0
    for _ in range(calls):
        for caller in callers:
            for _ in range(12 - sum(one.caller == caller for one in scheduler.live)):
                scheduler.add(make(caller))
        batch = turn(scheduler)
        assert batch is not None
        rows += batch.unet_rows
        for one in batch.rows:
            work[one.caller] += one.call_pixels
    whole = sum(work.values()) / sum(caller.weight for caller in callers)
    return {caller: work[caller] / caller.weight / whole for caller in callers}, rows / calls


SMALL = Limits(max_batch=4, max_running=10)


@pytest.mark.parametrize(
    ("mix", "limits"),
    [
        *((mix, Limits()) for mix in ("alike", "sizes", "guidance", "video")),
        ("guidance", SMALL),
        *(pytest.param(m, SMALL, marks=pytest.mark.deep) for m in ("alike", "sizes", "video")),
    ],
    ids=lambda one: one if isinstance(one, str) else f"batch of {one.max_batch}",
)
def test_ten_floods_share_the_work_by_their_weights(mix: str, limits: Limits) -> None:
    callers = [Caller(str(n), float(n)) for n in range(1, 11)]
    full = []
    for seed in (1, 2, 3):
        chance = random.Random(seed)

        def make(caller: Caller, chance: random.Random = chance) -> Trajectory:
            steps = chance.choice((1, 4, 8, 50))
            if mix == "alike":
                return row(caller, 4)
            side = chance.choice((64, 96, 128))
            if mix == "video" and caller.name == "3":
                return row(caller, 4, frames=16, guided=True)
            return row(caller, steps, side, guided=mix == "guidance" and chance.random() < 0.4)

        parts, rows_a_call = flooded(callers, make, 1000, limits)
        assert all(0.9 < part < 1.1 for part in parts.values()), parts
        if mix == "alike":
            assert rows_a_call > limits.max_batch - 0.5
        _, alone = flooded(callers[:1], make, 300, limits)
        full.append(rows_a_call / min(alone, limits.max_batch))
    assert mean(full) > 0.9, "sharing does not empty the calls"


def test_priority_acts_among_a_callers_own_rows_only() -> None:
    scheduler = Scheduler(Limits(max_batch=2))
    rows = [row(FLOOD, 9, priority=10), row(FLOOD, 9, priority=10), row(OTHER, 9), row(OTHER, 9)]
    rows[3].priority = 1
    for one in rows:
        scheduler.add(one)
    batch = turn(scheduler)
    assert batch is not None
    assert batch.rows == (rows[0], rows[3])


def test_idle_callers_save_nothing_up() -> None:
    scheduler = Scheduler(Limits(max_batch=2))
    scheduler.add(row(OTHER, 1))
    turn(scheduler)
    for _ in range(100):
        kept_full(scheduler, lambda: row(FLOOD, 50), 4)
        turn(scheduler)
    for _ in range(4):
        scheduler.add(row(OTHER, 50))
    taken = Counter(one.caller for _ in range(50) for one in getattr(turn(scheduler), "rows", ()))
    assert 48 <= taken[FLOOD] <= taken[OTHER] <= 52


def test_newcomers_find_slots_beside_callers_who_hold_them_all() -> None:
    scheduler = Scheduler(Limits(max_running=8))
    kept_full(scheduler, lambda: row(FLOOD, 50), 32)
    for _ in range(20):
        turn(scheduler)
    assert scheduler.running == 8, "a sole caller has the limit and no more"
    for _ in range(16):
        scheduler.add(row(OTHER, 50))
    turn(scheduler)
    held = Counter(one.caller for one in scheduler.live if one.slot is not None)
    assert held == {FLOOD: 8, OTHER: 4}, "its share is half of eight"
    for n in range(16):
        scheduler.add(row(Caller(str(n)), 50))
    for _ in range(40):
        turn(scheduler)
        assert scheduler.running <= 16


class FairMachine(RuleBasedStateMachine):
    """Any order of calls by three callers, beside a ledger of the work done for each pair."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits()
        self.scheduler = Scheduler(self.limits)
        self.lead: dict[tuple[Caller, Caller], float] = {}  # of the first, while both can run
        self.least: dict[tuple[Caller, Caller], float] = {}
        self.chance = random.Random(0)

    @initialize(max_batch=st.integers(2, 6), max_running=st.integers(1, 5))
    def start(self, max_batch: int, max_running: int) -> None:
        self.limits = Limits(max_batch=max_batch, max_running=max_running, aging_steps=2)
        self.scheduler = Scheduler(self.limits)

    @precondition(lambda self: len(self.scheduler.live) < 20)
    @rule(
        caller=st.sampled_from(CALLERS),
        steps=st.integers(1, 8),
        side=st.sampled_from((64, 96)),
        guided=st.booleans(),
        priority=st.integers(-2, 2),
        copies=st.integers(1, 6),
    )
    def add(
        self, caller: Caller, steps: int, side: int, guided: bool, priority: int, copies: int
    ) -> None:
        if not self.scheduler.live:
            self.lead.clear()  # when nobody waits all are equal again
        for _ in range(copies):
            self.scheduler.add(row(caller, steps, side, guided=guided, priority=priority))

    @precondition(lambda self: self.scheduler.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.scheduler.abort(data.draw(st.sampled_from([r.row_id for r in self.scheduler.live])))

    @rule()
    def run_out_of_memory(self) -> None:
        batch = self.schedule()
        if batch is not None:
            self.scheduler.advance(batch, OutOfMemory("full"))

    @rule(times=st.integers(1, 20))
    def steps(self, times: int) -> None:
        for _ in range(times):
            batch = self.schedule()
            if batch is not None:
                self.book(batch)
                self.scheduler.advance(batch, Advanced({}))

    def schedule(self) -> Batch | None:
        for joining in self.scheduler.joining(0.0):
            self.scheduler.joined(joining.row_id)
        assert self.scheduler.running <= 2 * self.limits.max_running
        can_run = [one for one in self.scheduler.live if one.status is Status.RUNNING]
        batch = self.scheduler.schedule(0.0)
        assert (batch is None) == (not self.scheduler.live), "something runs whenever it can"
        if batch is None:
            self.lead.clear()
            return None
        assert batch.unet_rows <= self.scheduler.limit_of(batch.key) or len(batch.rows) == 1
        present = {one.caller for one in can_run}
        if len(present) == 1:
            room = self.scheduler.limit_of(batch.key) - batch.unet_rows
            left = [r for r in can_run if r.key == batch.key and r not in batch.rows]
            assert all(r.unet_rows > room for r in left), "a sole caller fills its calls"
        pairs = {(a, b) for a in present for b in present if a != b}
        self.lead = {pair: self.lead.get(pair, 0.0) for pair in pairs}
        self.least = {pair: min(self.least.get(pair, 0.0), 0.0) for pair in pairs}
        return batch

    def book(self, batch: Batch) -> None:
        """No caller is served more than another who could run all the while, but for two calls
        of each, less a row.

        A tag grows by what its caller is served, by weight, so that a lead is what the distance of
        two tags has grown by. Whoever can run has at least the tag V at which the last call was
        led, and V never falls. Who leads has V, and one call (C) more at most when it is
        done; who rides had at most V + C / weight and shares C with the one who leads. So each is
        within V and V + (2C - row) / weight; one who comes has V or what was its own, which is
        there, too. Two tags thus are from (2C - row) / weight of the one apart to as much of the
        other. In pure start-time fair queueing, where no one rides, it is C and not 2C. A call that
        ran out of memory moves no tag, and calls are smaller thereafter.
        """
        work = Counter[Caller]()
        for one in batch.rows:
            work[one.caller] += one.call_pixels
        most = (2 * self.limits.max_batch - 1) * 12 * 12
        for a, b in self.lead:
            self.lead[a, b] += work[a] / a.weight - work[b] / b.weight
            self.least[a, b] = min(self.least[a, b], self.lead[a, b])
            assert self.lead[a, b] - self.least[a, b] <= most / a.weight + most / b.weight

    def teardown(self) -> None:
        for _ in range(20 * 8 * 40):
            if (batch := self.schedule()) is None:
                break
            self.scheduler.advance(batch, Advanced({}))
        assert self.scheduler.live == ()


def test_any_order_of_calls_is_fair() -> None:
    run_state_machine_as_test(FairMachine, settings=settings(max_examples=80))


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_any_order_of_calls_is_fair_for_long() -> None:
    run_state_machine_as_test(
        FairMachine, settings=settings(max_examples=3000, stateful_step_count=100)
    )


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1000.5])
def test_a_weight_that_cannot_share_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight is from 0\.001 to 1000"):
        Caller("x", weight)


def test_the_rows_that_wait_do_not_make_a_turn_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may have a slot is asked once a row that is taken, not once a row that is held."""
    asked: list[Caller] = []
    allow = Places.allow

    def counted(places: Places, caller: Caller) -> bool:
        asked.append(caller)
        return allow(places, caller)

    monkeypatch.setattr(Places, "allow", counted)
    scheduler = Scheduler(Limits(max_batch=8))
    kept_full(scheduler, lambda: row(FLOOD, 50), 256)
    for _ in range(5):
        asked.clear()
        assert work_of(turn(scheduler)) == 8 * 64
        assert len(asked) <= 3 * 8 + 2
