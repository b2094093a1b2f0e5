"""More is asked than the device can do: what it does is done in time."""

import random
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import pytest

from configs.app import Limits
from deployments.contracts.jobs import Caller
from deployments.diffusion.engine.policy.account import Account
from deployments.diffusion.engine.policy.batch import Advanced, Batch, BatchKey, Measured
from deployments.diffusion.engine.policy.deadlines import Deadlines
from deployments.diffusion.engine.policy.scheduler import Scheduler
from deployments.diffusion.engine.policy.tempo import Curve
from deployments.diffusion.engine.policy.trajectory import Trajectory
from tests.deployments.diffusion.engine.policy.test_scheduler import ids, next_batch, row

ROW_S = 0.02
CALL_S = 1.0  # of one guided row, which fills a call here
TIMED = Advanced({}, Measured(BatchKey(8, 8), 2, CALL_S))


def one(
    row_id: str, timeout_s: float | None = 60.0, *, steps: int = 4, priority: int = 0
) -> Trajectory:
    """A row that comes at the time 0, which it is all the while."""
    return row(row_id, steps, guided=True, priority=priority, deadline=timeout_s)


def timed(**limits: int) -> Scheduler:
    """It knows what a call takes."""
    made = Scheduler(Limits(max_batch=2, **limits))
    assert order(made, one("known")) == ["known"]
    return made


def order(made: Scheduler, *rows: Trajectory) -> list[str]:
    """Who ends first, and so on."""
    for each in rows:
        made.add(each)
    ended: list[str] = []
    while batch := next_batch(made):
        ended += [left.row_id for left in made.advance(batch, TIMED)]
    return ended


def test_who_can_be_done_in_time_goes_before_who_cannot() -> None:
    assert order(timed(), one("late", 3), one("in time")) == ["in time", "late"]


def test_who_has_hardly_time_enough_is_late_before_it_has_begun() -> None:
    assert order(timed(), one("hardly", 5), one("in time")) == ["in time", "hardly"]


@pytest.mark.parametrize(("timeout_s", "goes_on"), [(5, True), (3, False)])
def test_one_that_has_been_begun_goes_on_while_it_can(timeout_s: float, goes_on: bool) -> None:
    made = timed()
    begun = one("begun", timeout_s, steps=5)
    made.add(begun)
    batch = next_batch(made)
    assert batch is not None
    made.advance(batch, TIMED)
    assert order(made, one("in time")) == (
        ["begun", "in time"] if goes_on else ["in time", "begun"]
    )


def test_of_those_in_time_the_first_deadline_goes_first() -> None:
    rows = one("any time", None), one("a minute", 60), one("half a minute", 30)
    assert order(timed(), *rows) == ["half a minute", "a minute", "any time"]


def test_a_higher_priority_goes_first_however_late() -> None:
    assert order(timed(), one("in time"), one("late", 3, priority=1)) == ["late", "in time"]


def test_nobody_is_late_while_no_call_was_timed() -> None:
    assert order(Scheduler(Limits(max_batch=2)), one("first", 3), one("second")) == [
        "first",
        "second",
    ]


def test_who_is_late_gains_nothing_by_waiting() -> None:
    made = timed(aging_steps=1)
    others = [f"in time {number}" for number in range(9)]
    assert order(made, one("late", 3), *map(one, others)) == [*others, "late"]


def test_what_it_needs() -> None:
    """Four calls of a second: half as many for those before it, and some to spare."""
    deadlines = Deadlines()
    waits = one("waits", 10.0)
    assert not deadlines.late(waits, 0.0, 0.0)
    assert not deadlines.late(waits, 1.5, CALL_S)
    assert deadlines.late(waits, 1.7, CALL_S)
    waits.slot = 0
    assert not deadlines.late(waits, 3.5, CALL_S)
    assert deadlines.late(waits, 3.7, CALL_S)
    waits.advance()
    assert not deadlines.late(waits, 6.9, CALL_S)
    assert deadlines.late(waits, 7.1, CALL_S)


def test_what_is_between_calls_and_after_them_counts() -> None:
    deadlines = Deadlines()
    begun = one("begun", 10.0)
    begun.slot = 0
    begun.advance()
    deadlines.after_s = 2.0
    assert not deadlines.late(begun, 4.9, CALL_S)
    assert deadlines.late(begun, 5.1, CALL_S)
    for _ in range(60):
        deadlines.turned(2 * CALL_S, CALL_S)
    assert not deadlines.late(begun, 1.9, CALL_S)
    assert deadlines.late(begun, 2.1, CALL_S)


@pytest.mark.parametrize("between_s", [0.0, CALL_S / 8, CALL_S / 4])
def test_no_row_is_late_in_calls_that_are_as_small_as_it_needs(between_s: float) -> None:
    """Those before were of one row."""
    deadlines, curve = Deadlines(), Curve([(rows, rows * CALL_S / 8) for rows in range(1, 9)])
    for _ in range(400):
        deadlines.turned(CALL_S / 8 + between_s, CALL_S / 8)
    sized = 0
    for tenths in range(1, 1000):
        waits = one("waits", tenths / 10 + 0.01)
        rows = deadlines.call_rows(waits, 0.0, curve, 8)
        if rows < 8:
            sized += 1
            assert not deadlines.late(waits, 0.0, curve.seconds_of(rows))
    assert sized


def turn(made: Scheduler, now: float, after_s: float = 0.0) -> list[str]:
    """Who has a call at this time."""
    for joining in made.joining(now):
        made.joined(joining.row_id)
    batch = made.schedule(now, after_s)
    if batch is None:
        return []
    made.advance(batch, TIMED)
    return [each.row_id for each in batch.rows]


def goes_first(made: Scheduler, now: float, after_s: float = 0.0) -> str:
    """Of two, one of which has ten seconds for its four calls."""
    made.add(one("ten seconds", now + 10))
    made.add(one("a minute", now + 60))
    (first,) = turn(made, now, after_s)
    return first


def test_turns_that_are_longer_than_their_calls_are_noticed() -> None:
    made = timed()
    made.add(one("long", None, steps=30))
    for number in range(30):
        turn(made, 2 * CALL_S * number)
    assert goes_first(made, 60.0) == "a minute"


def test_what_is_idle_is_no_turn() -> None:
    made = timed()
    for number in range(30):
        made.add(one(str(number), None, steps=1))
        assert turn(made, 100.0 * number) == [str(number)]
        assert turn(made, 100.0 * number + CALL_S) == []
    assert goes_first(made, 3000.0) == "ten seconds"


def test_a_turn_that_stood_still_is_soon_forgotten() -> None:
    made = timed()
    made.add(one("long", None, steps=30))
    for number in range(30):
        turn(made, CALL_S * number + (600.0 if number > 15 else 0.0))
    assert goes_first(made, 700.0) == "ten seconds"


@pytest.mark.parametrize(("after_s", "first"), [(0.0, "ten seconds"), (5.0, "a minute")])
def test_what_comes_after_the_steps_counts(after_s: float, first: str) -> None:
    assert goes_first(timed(), 0.0, after_s) == first


def test_rows_get_slots_by_the_time_that_it_is() -> None:
    """Not by that of the last batch, which may be long ago."""
    made = timed(max_running=1)
    turn(made, 0.0)
    made.add(one("late", 103))
    made.add(one("in time", 160))
    assert [joining.row_id for joining in made.joining(100.0)] == ["in time"]


def test_little_with_little_time_goes_before_much_with_much() -> None:
    made = timed()
    made.add(row("much", 50, side=128, guided=True, deadline=300.0))
    assert turn(made, 0.0) == ["much"]
    made.add(one("little", 20.0))
    assert turn(made, 4 * CALL_S) == ["little"]


SHORT, LONG = Limits(max_batch=8), Limits(max_batch=16)


@pytest.mark.parametrize(
    ("load", "steps", "limits"),
    [
        *((load, 4, limits) for load in (1.0, 2.0, 4.0) for limits in (SHORT, LONG)),
        (2.0, 20, LONG),
    ],
)
def test_what_is_done_is_done_in_time(load: float, steps: int, limits: Limits) -> None:
    """In order of arrival it would be 0.1 to 0.5 of what the device can do at twice and four times
    that."""
    assert asked_at_random(load, steps, limits).done > 0.9
    for calls in (4, 6):
        foreseen = asked_at_random(load, steps, limits, foresees=True, calls=calls)
        assert foreseen.done > 0.9
        assert foreseen.in_vain < 0.06  # 0.6 of all at four times that, if all are accepted


@pytest.mark.parametrize(
    "callers", [(1, 1), (1, 1, 1, 1), (1,) * 16, (10, 1)], ids=["two", "four", "sixteen", "a flood"]
)
@pytest.mark.parametrize("load", [2.0, 4.0])
def test_what_is_accepted_of_several_is_done_in_time(load: float, callers: Sequence[float]) -> None:
    """A fifth to two thirds would be in vain if a caller's own alone were reckoned with."""
    course = asked_at_random(load, 4, SHORT, foresees=True, callers=callers)
    assert course.done > 0.9
    assert course.in_vain < 0.12


@pytest.mark.parametrize("callers", [2, 16, 40])
def test_of_several_too_all_is_done_where_there_is_time_enough(callers: int) -> None:
    course = asked_at_random(0.8, 4, SHORT, foresees=True, callers=(1,) * callers)
    assert course.lost < 0.01


@pytest.mark.parametrize(
    ("load", "calls", "in_vain"), [(2.0, 2.5, 0.02), (2.0, 3, 0.02), (4.0, 3, 0.08)]
)
def test_in_little_time_too(load: float, calls: float, in_vain: float) -> None:
    """If all were accepted, a tenth would be done, and half."""
    foreseen = asked_at_random(load, 4, SHORT, foresees=True, calls=calls)
    assert foreseen.done > 0.9
    assert foreseen.in_vain < in_vain


@pytest.mark.parametrize(
    ("load", "steps", "calls", "callers", "done"),
    [
        (2.0, 8, 1.3, 1, 0.9),
        (4.0, 8, 1.3, 1, 0.75),
        (2.0, 8, 1.3, 4, 0.8),
        (2.0, 8, 1.6, 16, 0.8),
        (4.0, 4, 2.0, 1, 0.85),
    ],
)
def test_in_less_time_than_full_calls_leave_smaller_ones_are_made(
    load: float, steps: int, calls: float, callers: int, done: float
) -> None:
    """In calls as full as may be it would be 0.03 to 0.2, and most of what is accepted in vain."""
    foreseen = asked_at_random(
        load, steps, SHORT, foresees=True, calls=calls, callers=(1,) * callers
    )
    assert foreseen.done > done
    assert foreseen.in_vain < 0.25


def test_a_call_is_as_small_as_its_first_row_needs_it() -> None:
    made = linear(SHORT)
    for at in range(16):
        made.add(row(f"little {at}", 4, deadline=in_calls_of(4)))
    made.add(row("any time", 4))
    assert ids(next_batch(made)) == [f"little {at}" for at in range(4)]


@pytest.mark.parametrize("rows", [1, 2])
def test_a_call_has_room_for_its_first_row_at_least(rows: int) -> None:
    made = linear(SHORT)
    made.add(row("guided", 4, guided=True, deadline=in_calls_of(rows)))
    made.add(row("any time", 4))
    assert ids(next_batch(made)) == (["guided"] if rows == 2 else ["any time", "guided"])


def test_small_calls_are_enough_to_know_how_long_the_work_takes() -> None:
    """Longer than anything is remembered of full calls, of which there are none any more."""
    foreseen = asked_at_random(2.0, 8, SHORT, foresees=True, calls=1.0, length=100)
    assert foreseen.done > 0.8
    assert foreseen.in_vain < 0.1


def test_how_full_calls_may_be_is_told_by_calls_of_that_size_alone() -> None:
    """Small images say little of large ones: by their pixels, one row would take 20 seconds."""
    made = linear(Limits(max_batch=8, max_step_ms=inf))
    for at in range(8):
        made.add(row(str(at), 4, 1024 * 8, deadline=100.0))
    assert len(ids(next_batch(made))) == 8


def test_calls_are_not_made_so_small_that_they_do_much_less() -> None:
    """Calls of few rows are in time, but half as long as one of eight even with one."""
    made = linear(SHORT)
    for rows in (1, 2, 8):
        for _ in range(2):
            batch = Batch(BatchKey(8, 8), tuple(row(f"{rows} {at}", 4) for at in range(rows)))
            seconds = 0.02 * (7 + rows) / 15 * 8
            made.advance(batch, Advanced({}, Measured(batch.key, rows, seconds)))
    for at in range(8):
        made.add(row(str(at), 4, deadline=in_calls_of(4)))
    assert len(ids(next_batch(made))) == 8


ANOTHER, BEHIND = Caller("another"), Caller("behind", background=True)


@pytest.mark.parametrize(
    ("theirs", "time_s", "first"),
    [
        (None, 0.1, ["theirs", "hopeless"]),  # four calls of its own take 0.08 s
        (None, 0.05, ["theirs"]),
        (0.05, 0.05, ["theirs", "hopeless"]),  # then one is as good as the other
    ],
    ids=["in time", "hopeless", "both hopeless"],
)
def test_who_cannot_be_done_any_more_has_no_turns_beside_another_who_can(
    theirs: float | None, time_s: float, first: list[str]
) -> None:
    made = linear(SHORT)
    for name, timeout_s, caller in (("hopeless", time_s, Caller()), ("theirs", theirs, ANOTHER)):
        made.add(of(caller, row(name, 4, deadline=timeout_s)))
    assert sorted(ids(next_batch(made)), reverse=True) == first


def test_beside_the_background_who_is_late_has_its_turns() -> None:
    made = linear(SHORT)
    made.add(row("late", 4, deadline=0.05))
    made.add(of(BEHIND, row("behind", 4)))
    assert "late" in ids(next_batch(made))


def test_who_has_time_enough_has_full_calls() -> None:
    made = linear(SHORT)
    for at in range(16):
        made.add(row(str(at), 4, deadline=in_calls_of(8)))
    assert len(ids(next_batch(made))) == 8


@pytest.mark.parametrize(("rows", "taken"), [(8, 15), (6, 11), (1, 1)])
def test_what_comes_at_once_after_a_quiet_time_is_taken_as_far_as_it_fits_a_call(
    rows: int, taken: int
) -> None:
    """One row is held, with hardly anything before it."""
    made = linear(SHORT)
    many = [row(str(at), 4, deadline=in_calls_of(rows)) for at in range(17)]
    made.add(many[0])
    assert next_batch(made) is not None
    foresight = made.foresight
    late = [at for at in range(1, 17) if foresight.late_s([many[at]], many[:at], 0.0)]
    assert late == [*range(taken, 17)]


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_where_there_is_time_enough_all_is_done_in_time(load: float) -> None:
    for calls in (4, 6):
        for foresees in (False, True):
            assert asked_at_random(load, 4, SHORT, foresees=foresees, calls=calls).lost < 0.01


def linear(limits: Limits) -> Scheduler:
    """It knows calls of eight rows, which take `ROW_S` for each."""
    made = Scheduler(limits)
    for at in range(16):
        made.add(row(f"before {at}", 4))
    while batch := next_batch(made):
        seconds = ROW_S * batch.unet_rows
        made.advance(batch, Advanced({}, Measured(batch.key, batch.unet_rows, seconds)))
    return made


def of(caller: Caller, one: Trajectory) -> Trajectory:
    one.caller = caller
    return one


def in_calls_of(rows: int) -> float:
    """Hardly more than four steps are reckoned with in calls of so many rows."""
    return (1.6 * 4 + 2) * (rows + 0.1) * ROW_S


class Course(NamedTuple):
    """What is done in time of what the device could do; what is not of what was asked for, and of
    what was accepted."""

    done: float
    lost: float
    in_vain: float


def asked_at_random(
    load: float,
    steps: int,
    limits: Limits,
    *,
    foresees: bool = False,
    calls: float = 6,
    callers: Sequence[float] = (1,),
    length: int = 10,
) -> Course:
    """Requests come at random, and calls take a tenth more or less than is known.

    Args:
        foresees: who would come too late is not accepted, as the registry does it.
        calls: times what an image takes in full calls that it has time.
        callers: how much each of them asks for, beside the others.
        length: of it all, times the time that an image has.
    """
    chance, who, made = random.Random(1), random.Random(2), Scheduler(limits)
    each_s = steps * TURN * call_s(limits.max_batch) / limits.max_batch
    timeout_s = calls * each_s * limits.max_batch
    until_s, now, came, due, done, lost = length * timeout_s, 0.0, 0, 0.0, 0, 0
    refused = 0
    joining: list[tuple[float, str]] = []
    accounts = {str(number): Account(Caller(str(number))) for number in range(len(callers))}
    while now < until_s:
        while due <= now:
            (account,) = who.choices([*accounts.values()], callers)
            new = row(str(came), steps, deadline=due + timeout_s)
            new.caller = account.caller
            lately = {each.caller: each.lately(due) for each in accounts.values()}
            late_s = made.foresight.late_s([new], made.live, due, lately)
            if (foresees and late_s) or len(made.live) >= limits.max_pending:
                refused += 1
            else:
                made.add(new)
            came += 1
            due += chance.expovariate(load / each_s)
        for gone in made.expired(now):
            made.abort(gone.row_id)
            lost += 1
        joining += [(now + PREPARED_S, one.row_id) for one in made.joining(now, DECODED_S)]
        for at, row_id in joining:
            if at <= now:
                made.joined(row_id)
        joining = [pair for pair in joining if pair[0] > now]
        batch = made.schedule(now, DECODED_S)
        if batch is None:
            now = min(due, *(at for at, _ in joining), due)
            continue
        for one in batch.rows:
            accounts[one.caller.name].had(now, made.foresight.turn_s(one))
        seconds = call_s(batch.unet_rows) * chance.lognormvariate(0, 0.1)
        now += TURN * seconds
        left = made.advance(batch, Advanced({}, Measured(batch.key, batch.unet_rows, seconds)))
        ends = now + DECODED_S
        in_time = sum(gone.deadline is not None and ends <= gone.deadline for gone in left)
        done, lost = done + in_time, lost + len(left) - in_time
    accepted = came - refused
    return Course(done * each_s / until_s, (refused + lost) / came, lost / accepted)


TURN = 1.2  # times a call
PREPARED_S, DECODED_S = 0.2, 0.3


def call_s(rows: int) -> float:
    """What a call takes: on a CPU nearly in proportion to its rows."""
    return 0.003 + 0.02 * rows
