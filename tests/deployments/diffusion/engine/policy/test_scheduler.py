"""The scheduler loses, doubles and starves no row, and leaks no slot."""

import random
from dataclasses import dataclass, replace
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from configs.app import Limits
from deployments.diffusion.engine.policy.batch import Advanced, Batch, OutOfMemory
from deployments.diffusion.engine.policy.scheduler import RECOVERY_STEPS, Scheduler
from deployments.diffusion.engine.policy.spec import PromptIds, RowSpec
from deployments.diffusion.engine.policy.trajectory import Status, Trajectory

NO_TEXT = PromptIds(((),), 0)
SIDES = (64, 72)
MAX_STEPS, MAX_LIVE, MAX_AGING = 6, 14, 3
MAX_BATCH, MAX_RUNNING = 6, 5
PRIORITIES = range(-2, 3)


def row(
    row_id: str,
    steps: int = 4,
    side: int = 64,
    *,
    guided: bool = False,
    priority: int = 0,
    deadline: float | None = None,
    status: Status = Status.WAITING,
) -> Trajectory:
    negative = NO_TEXT if guided else None
    spec = RowSpec(NO_TEXT, 0, side, side, steps, negative=negative)
    return Trajectory(row_id, spec, priority, deadline, status)


def ids(batch: Batch | None) -> list[str]:
    return [] if batch is None else [r.row_id for r in batch.rows]


def next_batch(scheduler: Scheduler) -> Batch | None:
    """The next batch, after every row that got a slot was made ready at once."""
    for joining in scheduler.joining(0.0):
        assert joining.status is Status.JOINING
        assert scheduler.joined(joining.row_id) is joining
    return scheduler.schedule(0.0)


def step(scheduler: Scheduler) -> list[str]:
    """Schedules and advances; the ids that took the step."""
    batch = next_batch(scheduler)
    if batch is not None:
        scheduler.advance(batch, Advanced({}))
    return ids(batch)


def longest_wait(own: int, aging: int, slots: int, oom: int) -> int:
    """Work done for others, in latent pixels, before a row of so much `own` takes a step.

    (spread + 1) x aging times its own lifts it above whatever has the highest priority and comes
    anew; each of the others there may have aged meanwhile, by what was done for those before it;
    and rows that hold all slots are finished first. Adversaries of 3,000 kinds came to 0.7 of it.
    Steps undone by memory running out come on top.
    """
    spread = PRIORITIES[-1] - PRIORITIES[0]
    largest = MAX_STEPS * row("", side=max(SIDES), guided=True).call_pixels
    undone = oom * MAX_BATCH * largest // MAX_STEPS
    return ((spread + 1) * aging + MAX_LIVE) * own + slots * largest + undone


@dataclass
class Known:
    """What the model knows of a row."""

    row: Trajectory
    taken: int = 0
    passed: int = 0  # latent pixels computed for others since its last step


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of calls, next to a model of what must be true."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits()
        self.scheduler = Scheduler(self.limits)
        self.live: dict[str, Known] = {}
        self.gone: set[str] = set()
        self.clock = 0.0
        self.count = 0
        self.out_of_memory = 0
        self.slots_before_shrinking = 0

    @initialize(
        max_batch=st.integers(2, MAX_BATCH),
        max_running=st.integers(1, MAX_RUNNING),
        aging=st.integers(1, MAX_AGING),
    )
    def start(self, max_batch: int, max_running: int, aging: int) -> None:
        self.limits = Limits(max_batch=max_batch, max_running=max_running, aging_steps=aging)
        self.scheduler = Scheduler(self.limits)

    @precondition(lambda self: len(self.live) < MAX_LIVE)
    @rule(
        steps=st.integers(1, MAX_STEPS),
        side=st.sampled_from(SIDES),
        guided=st.booleans(),
        priority=st.sampled_from(PRIORITIES),
        patience=st.none() | st.floats(0, 20),
        preparing=st.booleans(),
        copies=st.integers(1, 4),
    )
    def add(
        self,
        steps: int,
        side: int,
        guided: bool,
        priority: int,
        patience: float | None,
        preparing: bool,
        copies: int,
    ) -> None:
        for _ in range(min(copies, MAX_LIVE - len(self.live))):
            self.add_one(steps, side, guided, priority, patience, preparing)

    def add_one(
        self,
        steps: int,
        side: int,
        guided: bool,
        priority: int,
        patience: float | None,
        preparing: bool,
    ) -> None:
        self.count += 1
        new = row(
            f"row {self.count}",
            steps,
            side,
            guided=guided,
            priority=priority,
            deadline=None if patience is None else self.clock + patience,
            status=Status.PREPARING if preparing else Status.WAITING,
        )
        self.scheduler.add(new)
        self.live[new.row_id] = Known(new)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def adding_a_row_twice_is_refused(self, data: st.DataObject) -> None:
        with pytest.raises(ValueError, match="already scheduled"):
            self.scheduler.add(self.some_row(data))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        chosen = self.some_row(data)
        before = chosen.status
        self.scheduler.ready(chosen.row_id)
        assert chosen.status is (Status.WAITING if before is Status.PREPARING else before)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        batch = self.schedule()
        if batch is not None:
            chosen = st.sets(st.sampled_from(ids(batch)), max_size=2)
            self.advance(batch, data.draw(st.just(set[str]()) | chosen))

    @precondition(lambda self: len(self.live) < MAX_LIVE)
    @rule(times=st.integers(1, 40), side=st.sampled_from(SIDES))
    def favourites_keep_coming(self, times: int, side: int) -> None:
        """One row of the highest priority arrives before every step."""
        for _ in range(times):
            if len(self.live) < MAX_LIVE:
                self.add_one(2, side, False, PRIORITIES[-1], None, False)
            batch = self.schedule()
            if batch is not None:
                self.advance(batch, set())

    @rule()
    def run_out_of_memory(self) -> None:
        batch = self.schedule()
        if batch is None:
            return
        self.out_of_memory += 1
        limit = self.scheduler.limit_of(batch.key)
        second_time = batch.rows[0].short_of_memory
        left = self.scheduler.advance(batch, OutOfMemory("full"))
        if len(batch.rows) == 1 and second_time:
            assert left == batch.rows
            assert left[0].status is Status.FAILED
            self.forget(left[0].row_id)
        elif len(batch.rows) == 1:
            assert left == ()
            assert self.scheduler.limit_of(batch.key) == limit
        else:
            assert left == ()
            assert self.scheduler.limit_of(batch.key) == max(1, batch.unet_rows // 2) < limit

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        chosen = self.some_row(data)
        slot = chosen.slot
        assert self.scheduler.abort(chosen.row_id) is chosen
        assert chosen.status is Status.ABORTED
        assert chosen.slot == slot, "the caller must know which device memory to free"
        self.forget(chosen.row_id)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def what_has_left_is_unknown(self, data: st.DataObject) -> None:
        row_id = data.draw(st.sampled_from(sorted(self.gone)))
        assert self.scheduler.abort(row_id) is None
        self.scheduler.ready(row_id)

    @rule(seconds=st.floats(0, 10))
    def expire(self, seconds: float) -> None:
        self.clock += seconds
        late = {r.row_id for r in self.scheduler.expired(self.clock)}
        assert late == {
            row_id
            for row_id, known in self.live.items()
            if known.row.deadline is not None and known.row.deadline <= self.clock
        }
        for row_id in late:
            self.scheduler.abort(row_id)
            self.forget(row_id)

    @rule(
        max_batch=st.integers(2, MAX_BATCH),
        max_running=st.integers(1, MAX_RUNNING),
        aging=st.integers(1, MAX_AGING),
    )
    def reconfigure(self, max_batch: int, max_running: int, aging: int) -> None:
        self.slots_before_shrinking = self.scheduler.running
        self.limits = Limits(max_batch=max_batch, max_running=max_running, aging_steps=aging)
        self.scheduler.reconfigure(self.limits)
        assert self.scheduler.batch_limit == max_batch

    @invariant()
    def every_row_is_held_exactly_once(self) -> None:
        held = [r.row_id for r in self.scheduler.live]
        assert sorted(held) == sorted(self.live)
        assert self.scheduler.pending_unet_rows == sum(
            (k.row.steps - k.taken) * k.row.unet_rows for k in self.live.values()
        )

    @invariant()
    def a_slot_belongs_to_one_running_row(self) -> None:
        slots = [k.row.slot for k in self.live.values() if k.row.slot is not None]
        running = [k for k in self.live.values() if k.row.status is Status.RUNNING]
        assert len(set(slots)) == len(slots) == len(running) == self.scheduler.running
        assert len(slots) <= max(self.limits.max_running, self.slots_before_shrinking)

    @invariant()
    def nothing_waits_longer_than_the_bound(self) -> None:
        for known in self.live.values():
            bound = longest_wait(known.row.work, MAX_AGING, MAX_RUNNING, self.out_of_memory)
            assert known.passed <= bound

    def teardown(self) -> None:
        """Whatever is left can be run to its end, and then nothing is left."""
        for known in self.live.values():
            self.scheduler.ready(known.row.row_id)
        steps = sum(k.row.steps - k.taken for k in self.live.values())
        for _ in range(steps):
            batch = self.schedule()
            if batch is None:
                break
            self.advance(batch, set())
        assert not self.live
        assert self.scheduler.live == ()
        assert self.scheduler.running == self.scheduler.pending_unet_rows == 0
        assert self.scheduler.schedule(0.0) is None

    def some_row(self, data: st.DataObject) -> Trajectory:
        return self.live[data.draw(st.sampled_from(sorted(self.live)))].row

    def forget(self, row_id: str) -> None:
        del self.live[row_id]
        self.gone.add(row_id)
        self.slots_before_shrinking = min(self.slots_before_shrinking, self.scheduler.running)

    def schedule(self) -> Batch | None:
        before = {row_id: replace(known.row) for row_id, known in self.live.items()}
        could_run = {k.row.row_id for k in self.live.values() if k.row.status != Status.PREPARING}
        for joining in self.scheduler.joining(0.0):
            assert joining.status is Status.JOINING
            assert self.scheduler.running <= self.limits.max_running
            assert self.scheduler.joined(joining.row_id) is joining
        had_slot = {row_id for row_id, known in self.live.items() if known.row.slot is not None}
        batch = self.scheduler.schedule(0.0)
        if batch is None:
            assert not could_run
            return None
        chosen = ids(batch)
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= could_run
        assert {r.key for r in batch.rows} == {batch.key}
        assert all(r.slot is not None and r.status is Status.RUNNING for r in batch.rows)
        assert batch.unet_rows <= self.scheduler.limit_of(batch.key) or len(chosen) == 1
        assert all(r.slot is not None and r.slot < MAX_RUNNING for r in batch.rows)
        for row_id in could_run:
            known, was = self.live[row_id], before[row_id]
            if row_id in chosen:
                known.passed = 0
                assert (known.row.passed_over, known.row.work_before) == (0, was.work_before)
            else:
                known.passed += batch.pixels
                assert known.row.passed_over == was.passed_over + 1
                assert known.row.work_before == was.work_before + batch.pixels
        levels = {row_id: was.level(self.limits.aging_steps) for row_id, was in before.items()}
        self.check_priorities(batch, levels, had_slot, could_run)
        return batch

    def check_priorities(
        self, batch: Batch, levels: dict[str, int], had_slot: set[str], could_run: set[str]
    ) -> None:
        """A row is left out in favour of a lower one only for a reason: no slot for it, another
        size than the leader's, or twins that do not fit."""
        leader = batch.rows[0].row_id
        for row_id in could_run - set(ids(batch)):
            out = self.live[row_id].row
            for member in batch.rows:
                if levels[member.row_id] >= levels[row_id]:
                    continue
                slotless = row_id not in had_slot
                twins = out.unet_rows > member.unet_rows
                assert slotless or twins or (out.key != batch.key and member.row_id != leader)

    def advance(self, batch: Batch, failures: set[str]) -> None:
        cursors = {row_id: known.row.cursor for row_id, known in self.live.items()}
        outcome = Advanced({row_id: ValueError("odd") for row_id in failures})
        left = {r.row_id: r for r in self.scheduler.advance(batch, outcome)}
        assert failures <= set(left)
        for member in batch.rows:
            known = self.live[member.row_id]
            if member.row_id in failures:
                assert member.status is Status.FAILED
                assert member.cursor == cursors[member.row_id]
                self.forget(member.row_id)
                continue
            known.taken += 1
            assert member.cursor == known.taken == cursors[member.row_id] + 1
            assert (member.row_id in left) == (known.taken == member.steps)
            if known.taken == member.steps:
                assert member.status is Status.FINISHED
                self.forget(member.row_id)
        assert all(
            known.row.cursor == cursors[row_id]
            for row_id, known in self.live.items()
            if row_id not in ids(batch)
        )


def test_any_order_of_calls() -> None:
    run_state_machine_as_test(
        SchedulerMachine, settings=settings(max_examples=150, stateful_step_count=60)
    )


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_any_order_of_calls_for_long() -> None:
    run_state_machine_as_test(
        SchedulerMachine, settings=settings(max_examples=3000, stateful_step_count=150)
    )


def scheduler_of(*rows: Trajectory, **limits: int) -> Scheduler:
    scheduler = Scheduler(Limits(**limits))
    for one in rows:
        scheduler.add(one)
    return scheduler


def test_rows_join_between_steps_and_leave_when_done() -> None:
    scheduler = scheduler_of(row("long", 3))
    assert step(scheduler) == ["long"]
    scheduler.add(row("short", 1))
    assert step(scheduler) == ["long", "short"]
    assert step(scheduler) == ["long"]
    assert step(scheduler) == []


def test_only_rows_of_one_size_share_a_batch() -> None:
    scheduler = scheduler_of(row("a"), row("b", side=128), row("c"))
    assert step(scheduler) == ["a", "c"]


def test_little_work_of_another_size_waits_for_as_much_of_the_large_as_is_said() -> None:
    """Four small steps, of 64 pixels each, beside endless steps of 8 x 256."""
    aging = 16
    large = [row(f"large {n}", 50, side=128) for n in range(8)]
    scheduler = scheduler_of(*large, aging_steps=aging)
    step(scheduler)
    scheduler.add(row("small", 4))
    taken = [step(scheduler) for _ in range(8)]
    waited = taken.index(["small"])
    assert waited == -(-aging * 4 * 64 // (8 * 256))
    assert taken[waited : waited + 4] == [["small"]] * 4, "from then on it goes on to its end"


def test_much_work_of_another_size_waits_for_much() -> None:
    """Endless single steps of 64 pixels, of new rows each time, beside one row of 50 x 256."""
    aging = 2
    scheduler = scheduler_of(row("large", 50, side=128), row("small 0", 1, priority=1))
    scheduler.reconfigure(Limits(aging_steps=aging))
    waited = 0
    while step(scheduler) != ["large"]:
        waited += 1
        scheduler.add(row(f"small {waited}", 1, priority=1))
    assert waited == aging * 50 * 256 // 64


def test_sizes_alike_do_not_cut_one_another_up() -> None:
    """Taking turns, both would end as late as the last."""
    scheduler = scheduler_of(row("a", 50), row("b", 50, side=72))
    assert [step(scheduler)[0] for _ in range(100)] == ["a"] * 50 + ["b"] * 50


def test_a_guided_row_counts_twice() -> None:
    scheduler = scheduler_of(row("a", guided=True), row("b", guided=True), row("c"), max_batch=3)
    assert step(scheduler) == ["a", "c"], "b's twins do not fit beside a's, c does"


def test_a_guided_row_runs_even_where_one_row_fits() -> None:
    scheduler = scheduler_of(row("a"), row("c"), row("b", guided=True), max_batch=2)
    batch = next_batch(scheduler)
    assert ids(batch) == ["a", "c"]
    assert batch is not None
    scheduler.advance(batch, OutOfMemory("full"))
    assert scheduler.batch_limit == 1
    assert [step(scheduler) for _ in range(40)].count(["b"]) == 4


def test_a_higher_priority_goes_first() -> None:
    rows = [row("low", priority=-1), row("high", priority=5), row("mid")]
    assert step(scheduler_of(*rows, max_batch=2)) == ["high", "mid"]


def test_equal_priorities_go_by_arrival() -> None:
    scheduler = scheduler_of(row("first", 1), row("second", 1), row("third", 1), max_batch=2)
    assert step(scheduler) == ["first", "second"]
    assert step(scheduler) == ["third"]


@pytest.mark.parametrize("seed", range(60))
def test_no_stream_of_others_starves_a_row(seed: int) -> None:
    """Whatever comes all the time, of any size, steps and priority."""
    chance = random.Random(seed)
    aging, slots = chance.randint(1, MAX_AGING), chance.randint(1, MAX_RUNNING)
    victim = row(
        "victim",
        chance.randint(1, MAX_STEPS),
        chance.choice(SIDES),
        guided=chance.random() < 0.5,
        priority=PRIORITIES[0],
    )
    scheduler = scheduler_of(
        victim, max_batch=chance.randint(2, MAX_BATCH), max_running=slots, aging_steps=aging
    )
    kinds = [
        (chance.randint(1, MAX_STEPS), chance.choice(SIDES), chance.random() < 0.5)
        for _ in range(chance.randint(1, 3))
    ]
    bound = longest_wait(victim.work, aging, slots, oom=0)
    names, passed = count(), 0
    while victim.status is not Status.FINISHED:
        while len(scheduler.live) < MAX_LIVE:
            steps, side, guided = chance.choice(kinds)
            priority = chance.choice((PRIORITIES[-1], PRIORITIES[-1], PRIORITIES[0]))
            scheduler.add(row(str(next(names)), steps, side, guided=guided, priority=priority))
        batch = next_batch(scheduler)
        assert batch is not None
        scheduler.advance(batch, Advanced({}))
        passed = 0 if victim in batch.rows else passed + batch.pixels
        assert passed <= bound


def test_a_preparing_row_waits_until_it_is_ready() -> None:
    scheduler = scheduler_of(row("a", status=Status.PREPARING))
    assert step(scheduler) == []
    scheduler.ready("a")
    assert step(scheduler) == ["a"]


def test_slots_bound_the_rows_on_the_device_and_are_used_again() -> None:
    scheduler = scheduler_of(*(row(str(n), 2) for n in range(4)), max_running=2)
    assert step(scheduler) == step(scheduler) == ["0", "1"]
    assert scheduler.running == 0
    assert step(scheduler) == ["2", "3"]
    assert sorted(r.slot for r in scheduler.live if r.slot is not None) == [0, 1]


def test_fewer_slots_take_effect_as_rows_leave() -> None:
    scheduler = scheduler_of(*(row(str(n), n + 1) for n in range(4)), max_running=4)
    step(scheduler)
    scheduler.reconfigure(Limits(max_running=2))
    scheduler.add(row("new", 9))
    seen: list[int] = []
    while "new" not in step(scheduler):
        seen.append(scheduler.running)
    assert seen == [2, 1], "it waits until one of the two slots is left"
    assert scheduler.running <= 2


def test_rows_get_slots_two_batches_ahead_and_wait_until_they_are_ready() -> None:
    scheduler = scheduler_of(*(row(str(n), 2) for n in range(8)), max_batch=2)
    ahead = scheduler.joining(0.0)
    assert [one.row_id for one in ahead] == ["0", "1", "2", "3"]
    assert scheduler.joining(0.0) == (), "none has begun"
    assert scheduler.schedule(0.0) is None, "none is ready"
    scheduler.joined("1")
    assert ids(scheduler.schedule(0.0)) == ["1"], "those that are ready do not wait for the others"
    urgent = row("urgent", priority=5)
    scheduler.add(urgent)
    assert scheduler.joining(0.0) == (urgent,), "it comes before all that have not begun"
    for one in (*ahead, urgent):
        scheduler.joined(one.row_id)
    assert step(scheduler) == ["urgent", "0"]
    assert scheduler.joined("gone") is None


def test_running_out_of_memory_halves_the_batch_and_it_grows_back() -> None:
    scheduler = scheduler_of(*(row(str(n), 500) for n in range(8)), max_batch=8)
    batch = next_batch(scheduler)
    assert batch is not None
    assert scheduler.advance(batch, OutOfMemory("full")) == ()
    assert scheduler.batch_limit == 4
    assert len(step(scheduler)) == 4
    for _ in range(RECOVERY_STEPS - 1):
        step(scheduler)
    assert scheduler.batch_limit == 5
    for _ in range(3 * RECOVERY_STEPS):
        step(scheduler)
    assert scheduler.batch_limit == 8


def test_the_bound_that_memory_sets_is_learnt_for_each_image_size() -> None:
    large = [row(f"large {n}", 50, side=128) for n in range(4)]
    small = [row(f"small {n}", 50) for n in range(4)]
    scheduler = scheduler_of(*large, *small, max_batch=4, aging_steps=1)
    batch = next_batch(scheduler)
    assert batch is not None
    assert batch.key == large[0].key
    scheduler.advance(batch, OutOfMemory("full"))
    assert scheduler.limit_of(large[0].key) == 2
    assert scheduler.limit_of(small[0].key) == 4
    assert scheduler.batch_limit == 2, "the figure is that of the size that may have fewest"
    sizes = {len(step(scheduler)) for _ in range(8)}
    assert sizes == {2, 4}


def test_a_single_row_without_memory_is_tried_again_and_then_fails() -> None:
    scheduler = scheduler_of(row("a", guided=True), row("b", side=128))
    batch = next_batch(scheduler)
    assert ids(batch) == ["a"]
    assert batch is not None
    assert scheduler.advance(batch, OutOfMemory("full")) == ()
    (failed,) = scheduler.advance(batch, OutOfMemory("full"))
    assert (failed.row_id, failed.status) == ("a", Status.FAILED)
    assert scheduler.batch_limit == Limits().max_batch, "the other rows are not to blame"
    assert step(scheduler) == ["b"]


def test_a_step_that_found_memory_makes_good_for_one_that_did_not() -> None:
    scheduler = scheduler_of(row("a", 4))
    for _ in range(3):
        batch = next_batch(scheduler)
        assert batch is not None
        assert scheduler.advance(batch, OutOfMemory("full")) == ()
        assert step(scheduler) == ["a"]


def test_a_failed_row_leaves_alone() -> None:
    scheduler = scheduler_of(row("a"), row("b"))
    batch = next_batch(scheduler)
    assert batch is not None
    (failed,) = scheduler.advance(batch, Advanced({"a": ValueError("odd")}))
    assert (failed.row_id, failed.status, failed.cursor) == ("a", Status.FAILED, 0)
    assert step(scheduler) == ["b"]


def test_the_work_to_be_done_is_counted_in_latent_pixels() -> None:
    scheduler = scheduler_of(row("short", 2), row("long", 10), row("guided", 5, guided=True))
    pixels = scheduler.live[0].key.pixels
    work = scheduler.work
    assert (work.rows, work.row_pixels) == (3, 3 * pixels)
    assert work.unet_pixels == (2 + 10 + 2 * 5) * pixels
    assert work.until_first == 2 * 4 * pixels


@pytest.mark.parametrize("sizes", [1, 2, 4, 12])
def test_many_image_sizes_still_fill_their_batches(sizes: int) -> None:
    rows = [row(str(n), 4, 64 + 8 * (n % sizes)) for n in range(96)]
    scheduler = scheduler_of(*rows, max_batch=8, max_running=32)
    calls = 0
    while step(scheduler):
        calls += 1
    assert calls == 96 * 4 / 8


def test_a_row_that_found_no_memory_while_it_joined_waits_once() -> None:
    scheduler = scheduler_of(row("a"))
    (joining,) = scheduler.joining(0.0)
    assert scheduler.postpone("a")
    assert (joining.status, joining.slot) == (Status.WAITING, None)
    assert scheduler.joining(0.0) == (joining,)
    assert not scheduler.postpone("a"), "once"
    assert not scheduler.postpone("unknown")
