"""More is asked than the device can do: what it does is done in time."""

import random

import pytest

from configs.app import Limits
from deployments.diffusion.engine.policy.batch import Advanced, BatchKey, Measured
from deployments.diffusion.engine.policy.scheduler import Scheduler
from deployments.diffusion.engine.policy.trajectory import Trajectory
from tests.deployments.diffusion.engine.policy.test_scheduler import next_batch, row

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


def test_without_a_deadline_nobody_is_late() -> None:
    assert order(timed(), one("first", None), one("second")) == ["first", "second"]


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


@pytest.mark.parametrize("load", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("steps", "timeout_s"), [(4, 5.0), (50, 40.0)])
def test_what_the_device_does_is_in_time(load: float, steps: int, timeout_s: float) -> None:
    """In order of arrival it would be 0.1 to 0.5 of what the device can do."""
    done, _ = asked_at_random(load, steps, timeout_s)
    assert done > 0.85


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_who_has_time_enough_for_a_short_line_is_done_in_time(load: float) -> None:
    done, asked = asked_at_random(load, 4, 5.0)
    assert done > 0.99 * asked


def asked_at_random(load: float, steps: int, timeout_s: float) -> tuple[float, float]:
    """What is done in time, and what has been asked for, of what the device could do. Requests
    come at random, and calls take a tenth more or less than is known."""
    chance = random.Random(1)
    made = Scheduler(Limits(max_batch=8))
    each_s = steps * call_s(8) / 8
    until_s, now, came, due = 12 * timeout_s, 0.0, 0, 0.0
    done = 0
    while now < until_s:
        while due <= now:
            if len(made.live) < Limits().max_pending:
                made.add(row(str(came), steps, deadline=due + timeout_s))
            came += 1
            due += chance.expovariate(load / each_s)
        for late in made.expired(now):
            made.abort(late.row_id)
        for joining in made.joining():
            made.joined(joining.row_id)
        batch = made.schedule(now)
        if batch is None:
            now = due
            continue
        seconds = call_s(batch.unet_rows) * chance.lognormvariate(0, 0.1)
        now += seconds
        left = made.advance(batch, Advanced({}, Measured(batch.key, batch.unet_rows, seconds)))
        done += sum(gone.deadline is not None and now <= gone.deadline for gone in left)
    return done * each_s / until_s, came * each_s / until_s


def call_s(rows: int) -> float:
    """What a call takes: on a CPU nearly in proportion to its rows."""
    return 0.003 + 0.02 * rows
