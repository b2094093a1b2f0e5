"""A replica that had no room a moment ago is not asked by everyone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from deployments.contracts.errors import InvalidRequest, QueueFull
from deployments.contracts.jobs import Caller, ImageJob, LoraWeight
from deployments.ingress.request import full as full_module
from deployments.ingress.request.full import FORGOTTEN_AFTER_S, MOST_S, Full

JOB = ImageJob("job", "a ball", (1, 2), 64, 64, timeout_s=10.0, caller=Caller("alice"))
REPLICAS = 2
SAID = QueueFull("128 of 128 images are pending", 3000, 100)


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(full_module, "_now", made)
    return made


def asks(
    full: Full, job: ImageJob = JOB, error: Exception | None = None, model: str = "sd15"
) -> QueueFull | None:
    """What it is told without that the replicas were asked; they answer with `error`."""
    try:
        with full.asking(model, job, REPLICAS):
            if error is not None:
                raise error
    except (QueueFull, InvalidRequest) as told:
        return told if told is not error and isinstance(told, QueueFull) else None
    return None


def refused(error: Exception = SAID) -> Full:
    full = Full()
    assert asks(full, error=error) is None
    return full


def test_who_asks_for_as_much_is_told_the_same_until_there_should_be_room(clock: Clock) -> None:
    full = refused()
    clock.now += 0.09
    told = [asks(full) for _ in range(50)]
    waits = {one.retry_after_ms for one in told if one is not None}
    assert all(str(one) == f"a moment ago: {SAID}" for one in told)
    assert min(waits) >= 2910
    assert max(waits) <= 2 * 2910
    assert len(waits) > 20, "all of them would come back at once"


def test_nobody_is_told_to_come_back_while_all_are_refused(clock: Clock) -> None:
    """The first has room before there is some for others."""
    full = refused(QueueFull("too late", 50, 200))
    clock.now += 0.09
    told = asks(full)
    assert told is not None
    assert 110 <= told.retry_after_ms <= 220


def test_then_some_ask_at_a_time(clock: Clock) -> None:
    full = refused()
    for _ in range(3):
        clock.now += 0.11
        assert [asks(full) is None for _ in range(9)] == [True] * 2 * REPLICAS + [False] * 5
    clock.now += 0.11
    assert asks(full, error=SAID) is None
    assert asks(full) is not None
    clock.now += 0.09
    assert asks(full) is not None


@pytest.mark.parametrize(("callers", "each"), [(2, 2), (3, 2), (4, 1), (9, 1)])
def test_refused_callers_share_who_asks(callers: int, each: int, clock: Clock) -> None:
    full, jobs = Full(), [replace(JOB, caller=Caller(str(at))) for at in range(callers)]
    for job in jobs:
        assert asks(full, job, SAID) is None
    clock.now += 0.11
    for job in jobs:
        assert [asks(full, job) for _ in range(9)].count(None) == each


@pytest.mark.parametrize(
    ("said", "later_s"),
    [
        pytest.param(SAID, MOST_S, id="they come back when they were told"),
        pytest.param(QueueFull("full", 3000), 0.0, id="nothing holds them back"),
    ],
)
def test_who_does_not_wait_to_ask_takes_no_share(
    said: QueueFull, later_s: float, clock: Clock
) -> None:
    full = Full()
    for at in range(9):
        assert asks(full, replace(JOB, caller=Caller(str(at))), said) is None
    clock.now += later_s
    assert asks(full, error=SAID) is None
    clock.now += 0.11
    assert [asks(full) for _ in range(9)].count(None) == 2 * REPLICAS


def test_who_goes_on_asking_keeps_its_share(clock: Clock) -> None:
    full, bob = refused(QueueFull("full", 3000, 1000)), replace(JOB, caller=Caller("bob"))
    assert asks(full, bob, SAID) is None
    for _ in range(2):
        clock.now += 0.2
        asks(full, bob)
    assert asks(full) is None
    assert [asks(full) for _ in range(9)].count(None) == 1


def test_callers_who_are_refused_at_the_same_time_are_all_remembered(clock: Clock) -> None:
    full, bob = Full(), replace(JOB, caller=Caller("bob"))

    def ask_slowly() -> None:
        with full.asking("sd15", bob, REPLICAS):
            assert asks(full, error=SAID) is None  # meanwhile
            raise SAID

    with pytest.raises(QueueFull):
        ask_slowly()
    assert asks(full) is not None
    assert asks(full, bob) is not None


def test_what_nobody_says_any_more_is_forgotten(clock: Clock) -> None:
    full = refused()
    clock.now += FORGOTTEN_AFTER_S
    assert [asks(full) for _ in range(9)] == [None] * 9


def test_nobody_is_kept_from_asking_for_long(clock: Clock) -> None:
    full = refused(QueueFull("full", 90_000, 90_000))
    clock.now += MOST_S - 0.01
    assert asks(full) is not None
    clock.now += 0.02
    assert asks(full) is None


@pytest.mark.parametrize("error", [QueueFull("full", 3000), InvalidRequest("no", "loras")])
def test_what_says_nothing_of_others(error: Exception, clock: Clock) -> None:
    assert asks(refused(error)) is None


@pytest.mark.parametrize(
    "other",
    [
        replace(JOB, seeds=(1,)),
        replace(JOB, num_inference_steps=2),
        replace(JOB, width=32),
        replace(JOB, priority=1),
        replace(JOB, timeout_s=20.1),
        replace(JOB, timeout_s=4.9),
        replace(JOB, loras=(LoraWeight("ink", 0.5),)),
        replace(JOB, timeout_s=None),
        replace(JOB, caller=Caller("bob")),
    ],
)
def test_who_may_find_room_all_the_same_asks(other: ImageJob, clock: Clock) -> None:
    assert asks(refused(), other) is None


@pytest.mark.parametrize(
    "other",
    [
        replace(JOB, seeds=(1, 2, 3)),
        replace(JOB, num_inference_steps=50),
        replace(JOB, priority=-1),
        replace(JOB, timeout_s=5.0),
        replace(JOB, timeout_s=20.0),
    ],
)
def test_who_asks_for_more_does_not(other: ImageJob, clock: Clock) -> None:
    assert asks(refused(), other) is not None


def test_a_refusal_of_adapters_holds_for_the_same(clock: Clock) -> None:
    full, styled = Full(), replace(JOB, loras=(LoraWeight("ink", 0.5),))
    assert asks(full, styled, SAID) is None
    assert asks(full) is None
    assert asks(full, replace(JOB, loras=(LoraWeight("ink", 1.0),))) is not None


def test_another_model_is_another_matter(clock: Clock) -> None:
    full = refused()
    assert asks(full, model="sdxl") is None
    for at in range(9):
        assert asks(full, replace(JOB, caller=Caller(str(at))), SAID, "sdxl") is None
    clock.now += 0.11
    assert [asks(full) for _ in range(9)].count(None) == 2 * REPLICAS


def test_what_is_past_takes_no_room(clock: Clock) -> None:
    full = Full()
    make: Callable[[int], Any] = lambda at: replace(JOB, caller=Caller(str(at)))  # noqa: E731
    for at in range(100):
        assert asks(full, make(at), SAID) is None
        clock.now += FORGOTTEN_AFTER_S / 2
    assert len(full._told) < 5
