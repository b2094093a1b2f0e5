"""Who would come too late is told at once: on a device that needs a second for a row."""

from collections.abc import Mapping

import pytest

from deployments.contracts.jobs import Caller
from deployments.diffusion.engine.policy.batch import BatchKey
from deployments.diffusion.engine.policy.deadlines import Deadlines
from deployments.diffusion.engine.policy.foresight import MORE, Foresight
from deployments.diffusion.engine.policy.tempo import Curve
from deployments.diffusion.engine.policy.trajectory import Status, Trajectory
from tests.deployments.diffusion.engine.policy.test_scheduler import row

SIZE = BatchKey(8, 8)
TIMED = Foresight(Deadlines(), {SIZE: 1.0}, {SIZE: 1.0})
ALONE_S = 4 * 1.1 + 2  # that four steps are reckoned with
NOW = 100.0
SOMEBODY, ANOTHER, THIRD = Caller(), Caller("another"), Caller("third")
HEAVY, BEHIND = Caller("heavy", 3.0), Caller("behind", background=True)


def before(
    number: int,
    steps: int = 4,
    timeout_s: float | None = 30.0,
    *,
    priority: int = 0,
    status: Status = Status.WAITING,
    caller: Caller = SOMEBODY,
) -> list[Trajectory]:
    deadline = None if timeout_s is None else NOW + timeout_s
    rows = [
        row(str(at), steps, deadline=deadline, priority=priority, status=status)
        for at in range(number)
    ]
    for each in rows:
        each.caller = caller
    return rows


def late_s(
    others: list[Trajectory],
    timeout_s: float | None = 30.0,
    *,
    images: int = 1,
    steps: int = 4,
    foresight: Foresight = TIMED,
    caller: Caller = SOMEBODY,
    lately: Mapping[Caller, float] | None = None,
) -> float:
    return foresight.late_s(before(images, steps, timeout_s, caller=caller), others, NOW, lately)


def test_what_goes_before_it_is_added_up() -> None:
    assert late_s(before(5)) == 0  # 20 seconds, and a tenth more
    assert late_s(before(6)) == pytest.approx(MORE * 24 + ALONE_S - 30)


def test_a_job_of_several_images_is_as_late_as_its_last() -> None:
    assert late_s(before(4), images=3) == pytest.approx(MORE * 24 + ALONE_S - 30)
    assert late_s([], images=6) == 0
    assert late_s([], images=7) == 0  # alone, it is no better


@pytest.mark.parametrize(
    "others",
    [
        [],
        before(9, timeout_s=31),
        before(9, timeout_s=None),
        before(9, priority=-1),
        before(9, status=Status.PREPARING),
        before(9, timeout_s=ALONE_S - 0.1),
    ],
    ids=["nobody", "later", "any time", "less urgent", "adapters missing", "late themselves"],
)
def test_who_does_not_go_before_it(others: list[Trajectory]) -> None:
    assert late_s(others) == 0


def test_of_those_before_it_only_who_is_in_time_counts() -> None:
    """Each has 20 seconds: four are begun before the fifth is too late."""
    assert late_s(before(9, timeout_s=20), timeout_s=23) == pytest.approx(MORE * 16 + ALONE_S - 23)


def test_who_is_more_urgent_goes_before_it() -> None:
    assert late_s(before(6, priority=1)) == late_s(before(6)) > 0


@pytest.mark.parametrize("timeout_s", [None, ALONE_S - 0.1])
def test_who_has_any_time_or_too_little_even_alone_is_not_refused(timeout_s: float | None) -> None:
    assert late_s(before(9, timeout_s=timeout_s), timeout_s=timeout_s) == 0


OF_FOUR = Foresight(Deadlines(), {SIZE: 2.0}, {SIZE: 1.0}, {SIZE: 4})


def test_who_finds_room_in_its_own_calls_waits_for_nobody() -> None:
    """Calls of four rows, of which two are held: it shares them with three."""
    assert late_s(before(3, timeout_s=21), 21, foresight=OF_FOUR) == 0
    assert late_s(before(4, timeout_s=21), 21, foresight=OF_FOUR) > 0
    assert late_s(before(2, timeout_s=21), 21, images=2, foresight=OF_FOUR) == 0
    assert late_s(before(3, timeout_s=21), 21, images=2, foresight=OF_FOUR) > 0


IN_TWO_S = (1.6 * 4 + 2) * 2 + 0.1  # time for four steps in calls of two rows


@pytest.mark.parametrize(
    ("others", "seconds"),
    [
        (before(1, timeout_s=IN_TWO_S), 0),
        (before(2, timeout_s=IN_TWO_S), 4),
        (before(3, timeout_s=IN_TWO_S), 8),
        (before(3, timeout_s=3.0), 8),  # late themselves, and in the way while they are there
        (before(3, timeout_s=IN_TWO_S + 1), 0),
        (before(9, timeout_s=None), 0),
        (before(9, timeout_s=IN_TWO_S, caller=ANOTHER), 0),  # of which it has in turns one
        (before(9, caller=ANOTHER) + before(9, caller=THIRD), 4),
    ],
    ids=["one", "two", "three", "late", "later", "any time", "another's", "two others'"],
)
def test_in_little_time_all_has_to_have_room_in_smaller_calls(
    others: list[Trajectory], seconds: float
) -> None:
    """Calls of four take four seconds, of which not eight are in time: of two they are."""
    curves = {SIZE: Curve([(4, 4.0)])}
    foresight = Foresight(Deadlines(), {SIZE: 4.0}, {SIZE: 1.0}, {SIZE: 4}, curves)
    assert late_s(others, IN_TWO_S, foresight=foresight) == pytest.approx(seconds, abs=1e-6)


def test_however_late_those_before_it_are_they_take_its_room() -> None:
    """Of nine one alone can be in time: four seconds before it, of hardly more than three."""
    assert late_s(before(9, timeout_s=16), 16, foresight=OF_FOUR) > 0


def test_a_job_of_as_many_images_as_a_call_has_rows_is_as_long_as_one() -> None:
    assert late_s(before(1, timeout_s=17.3), 17.3, images=3, foresight=OF_FOUR) == 0
    assert late_s(before(5, timeout_s=17.3), 17.3, images=4, foresight=OF_FOUR) == pytest.approx(
        MORE * 8 - (17.3 - 2 * ALONE_S)
    )


def test_nobody_is_refused_by_times_that_are_not_known() -> None:
    """What only calls of few rows were timed of, for one: full ones are no slower, at least."""
    assert late_s(before(99), foresight=Foresight()) == 0
    assert late_s(before(99), foresight=Foresight(Deadlines(), {SIZE: 1.0})) == 0


def test_turns_that_are_longer_than_their_calls_count() -> None:
    deadlines = Deadlines()
    for _ in range(400):
        deadlines.turned(2.0, 1.0)
    slow = Foresight(deadlines, TIMED.call_s, TIMED.row_s)
    assert late_s(before(9, timeout_s=60), 60, foresight=slow) == pytest.approx(
        MORE * 6 * 8 + 2 * ALONE_S - 60
    )


@pytest.mark.parametrize(
    ("theirs", "seconds"),
    [
        (before(2, caller=ANOTHER), 8),  # all that there is of it
        (before(9, caller=ANOTHER), 12),  # as much as of the caller, the job itself among it
        (before(9, timeout_s=31, caller=ANOTHER), 12),
        (before(9, timeout_s=None, caller=ANOTHER), 12),
        (before(9, priority=-1, caller=ANOTHER), 12),
        (before(9, caller=HEAVY), 36),
        (before(9, caller=ANOTHER) + before(1, caller=THIRD), 16),
        (before(9, caller=BEHIND), 0),
        (before(9, caller=ANOTHER, status=Status.PREPARING), 0),
        (before(9, timeout_s=ALONE_S - 0.1, caller=ANOTHER), 0),
    ],
    ids=[
        *("little", "much", "later", "any time", "less urgent", "more weight", "two"),
        *("background", "adapters missing", "too late"),
    ],
)
def test_others_take_turns_with_it(theirs: list[Trajectory], seconds: float) -> None:
    mine = before(2, timeout_s=23)
    expected = MORE * 8 + seconds + ALONE_S - 23
    assert late_s(mine + theirs, 23) == pytest.approx(max(0.0, expected))


def test_a_lighter_caller_waits_longer() -> None:
    light = Caller("light", 0.5)
    held = before(9, caller=ANOTHER) + before(1, timeout_s=26, caller=light)
    assert late_s(held, 26, caller=light) == pytest.approx(MORE * 4 + 16 + ALONE_S - 26)


def test_what_comes_of_others_meanwhile_counts_up_to_their_share() -> None:
    """Who had a quarter of the time has a quarter of until the job's last call but half of its
    own: t = (12 - 2) / 12 * (12 + t) / 4."""
    mine = before(2, timeout_s=18)
    alone_s = MORE * 8 + ALONE_S - 18
    assert late_s(mine, 18) == late_s(mine, 18, lately={SOMEBODY: 0.9, BEHIND: 0.9}) == 0
    quarter = {ANOTHER: 0.25}
    assert late_s(mine, 18, lately=quarter) == pytest.approx(
        alone_s + 2.5 / (1 - 2.5 / 12), abs=0.01
    )
    held = [*mine, *before(1, caller=ANOTHER)]
    assert late_s(held, 18, lately=quarter) == pytest.approx(
        alone_s + 6.5 / (1 - 2.5 / 12), abs=0.01
    )
    assert late_s(mine, 18, lately={ANOTHER: 0.9}) == pytest.approx(alone_s + 12)


def test_who_is_late_for_the_turns_of_others_does_not_go_before_it() -> None:
    """Each of three has 13.6 seconds to spare; the third would begin after 16."""
    held = [*before(3, timeout_s=20), *before(9, caller=ANOTHER)]
    assert late_s(held, 24) == pytest.approx(MORE * 8 + 12 + ALONE_S - 24)


def test_the_background_may_wait_for_everybody() -> None:
    assert late_s(before(9, caller=ANOTHER), 9) > 0
    assert late_s(before(9, caller=ANOTHER), 9, caller=BEHIND, lately={ANOTHER: 0.9}) == 0


def test_who_finds_room_with_others_in_its_own_calls_waits_for_nobody() -> None:
    theirs = [*before(1, caller=ANOTHER), *before(1, caller=THIRD), *before(1, caller=HEAVY)]
    assert late_s(theirs, 14, foresight=OF_FOUR) == 0
    more = [*theirs, *before(1, caller=Caller("fourth"))]
    assert late_s(more, 14, foresight=OF_FOUR) > 0
