"""Calls are kept to the time that they may last, by what calls took before."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import pytest

from configs.app import Limits
from deployments.diffusion.engine.policy.batch import Advanced, Batch, BatchKey, Measured
from deployments.diffusion.engine.policy.scheduler import Scheduler
from deployments.diffusion.engine.policy.spec import PromptIds, RowSpec
from deployments.diffusion.engine.policy.tempo import FORGOTTEN_AFTER, SIZES, SMALL, Tempo
from deployments.diffusion.engine.policy.trajectory import Trajectory

THUMB, LARGE = BatchKey(8, 8), BatchKey(64, 64)


def device_s(call: BatchKey, rows: int) -> float:
    """A device to which a call costs 10 ms, and 50 ms for each row of 64 x 64."""
    return 0.010 + 0.050 * rows * call.pixels / LARGE.pixels


def timed(tempo: Tempo, key: BatchKey, rows: int, times: int = 2) -> None:
    for _ in range(times):
        tempo.measure(Measured(key, rows, device_s(key, rows)))


def test_nothing_is_known_before_anything_was_timed_twice() -> None:
    tempo = Tempo()
    assert tempo.curve(LARGE).rows_within(0.5) == inf
    timed(tempo, LARGE, 8, 1)
    assert tempo.curve(LARGE).rows_within(0.5) == inf, "it may have compiled"


def test_what_takes_too_long_is_taken_in_proportion() -> None:
    tempo = Tempo()
    timed(tempo, LARGE, 8)
    assert tempo.curve(LARGE).rows_within(0.411) == 8
    assert tempo.curve(LARGE).rows_within(0.220) == 4
    assert tempo.curve(LARGE).rows_within(0.040) == 0


def test_one_more_row_is_taken_to_cost_what_it_did_before() -> None:
    tempo = Tempo()
    timed(tempo, LARGE, 1)
    timed(tempo, LARGE, 4)
    for rows in (4, 5, 7, 8):
        assert tempo.curve(LARGE).rows_within(device_s(LARGE, rows) + 0.01) == rows
    timed(tempo, LARGE, 6)
    assert tempo.curve(LARGE).rows_within(device_s(LARGE, 5) + 0.01) == 5, (
        "six are known to be too many"
    )


def test_what_is_in_time_in_any_case_is_taken_at_once() -> None:
    tempo = Tempo()
    timed(tempo, LARGE, 1)
    assert tempo.curve(LARGE).rows_within(32.1 * device_s(LARGE, 1)) == 32, "a burst is not held up"
    near = 1.9 * device_s(LARGE, 1)
    assert tempo.curve(LARGE).rows_within(near) == 2, "else at most twice as many are tried"
    timed(tempo, THUMB, 1)
    tempo.measure(Measured(THUMB, 1, 0.0))
    assert tempo.curve(THUMB).rows_within(1.0) > 8


def grown(seconds_of: Callable[[int], float]) -> list[int]:
    """Rows of calls one after the other, on a device that has as many to do as it may."""
    tempo, called = Tempo(), []
    for _ in range(20):
        rows = tempo.rows_worth(LARGE)
        tempo.measure(Measured(LARGE, rows, seconds_of(rows)))
        called.append(rows)
    return called


def test_more_rows_share_a_call_only_while_that_pays() -> None:
    assert grown(lambda rows: 0.02 * rows)[-1] == SMALL, "a full device does no more at once"
    assert grown(lambda rows: 0.02 * rows).count(2 * SMALL) == 2, "known by two calls"
    assert grown(lambda _: 0.2)[:6] == [8, 8, 16, 16, 32, 32], "one that is not full does"
    assert grown(lambda rows: max(0.4, 0.02 * rows))[-1] == 32, "20 rows fill it; 64 do not pay"
    assert grown(lambda rows: 0.2 + 0.001 * rows * rows)[-1] == 16


@pytest.mark.parametrize("seen", [(), (15,), (14,), (16, 31)])
@pytest.mark.parametrize("call_s", [0.01, 0.04, 0.1])
def test_an_odd_number_of_rows_seen_once_keeps_none_from_more(
    seen: tuple[int, ...], call_s: float
) -> None:
    tempo = Tempo()
    for rows in (8, 8, *(rows for one in seen for rows in (one, one))):
        tempo.measure(Measured(LARGE, rows, call_s + 0.002 * rows))
    for _ in range(100):
        rows = tempo.rows_worth(LARGE)
        tempo.measure(Measured(LARGE, min(rows, 32), call_s + 0.002 * min(rows, 32)))
    assert min(rows, 32) == 32


def test_what_was_found_not_to_pay_is_tried_again_one_day() -> None:
    tempo, called = Tempo(), []
    for call in range(3 * FORGOTTEN_AFTER):
        rows = tempo.rows_worth(LARGE)
        held_up = 5.0 if call < 20 and rows > SMALL else 0.0  # by something else
        tempo.measure(Measured(LARGE, rows, 0.2 + held_up))
        called.append(rows)
    assert set(called[4:FORGOTTEN_AFTER]) == {SMALL}
    assert called[-1] > SMALL


def test_calls_of_any_number_of_rows_tell_what_pays() -> None:
    tempo, chance = Tempo(), random.Random(1)
    for _ in range(100):
        rows = chance.randint(1, tempo.rows_worth(LARGE))
        tempo.measure(Measured(LARGE, rows, 0.1))
    assert tempo.rows_worth(LARGE) >= 4 * SMALL


def test_an_untimed_size_goes_by_the_one_timed_last() -> None:
    tempo = Tempo()
    timed(tempo, LARGE, 4)
    assert tempo.curve(BatchKey(64, 128)).rows_within(device_s(LARGE, 4) + 1e-9) == 2
    assert tempo.curve(BatchKey(64, 128, 16)).rows_within(2 * device_s(LARGE, 4) + 1e-9) == 4
    timed(tempo, BatchKey(64, 128), 4, 1)
    assert tempo.curve(BatchKey(64, 128)).rows_within(device_s(LARGE, 4) + 1e-9) == 2


def test_what_is_kept_is_bounded() -> None:
    tempo = Tempo()
    for height in range(SIZES + 50):
        timed(tempo, BatchKey(8 + height, 8), 2, 2)
    assert len(tempo._sizes) == SIZES


@dataclass(frozen=True)
class Device:
    """One whose calls cost so much, and each of their rows."""

    call_s: float
    row_s: float
    limit_ms: float

    @property
    def rows(self) -> int:
        """Most that are in time, of eight; one at least."""
        return min(8, max(1, int((self.limit_ms / 1e3 - self.call_s) / self.row_s + 1e-9)))


DEVICES = [
    Device(0.010, 0.050, 30),
    Device(0.010, 0.050, 120),
    Device(0.010, 0.050, 300),
    Device(0.055, 0.035, 165),
    Device(0.055, 0.035, 130),
    Device(0.200, 0.050, 480),
    Device(0.160, 0.100, 500),
    Device(0.040, 0.002, 75),
    Device(0.0, 0.090, 200),
]
TROUBLES = {
    "none": {},
    "it compiles": {0: 3.0},
    "it compiles and tunes": {0: 3.0, 1: 3.0, 2: 3.0},
    "it stood still": {100: 60.0},
    "it stood still twice": {100: 60.0, 101: 60.0},
}


@pytest.mark.parametrize(
    ("device", "trouble"),
    [
        pytest.param(device, trouble, marks=[pytest.mark.deep] if deep else [])
        for number, device in enumerate(DEVICES)
        for place, trouble in enumerate(TROUBLES)
        for deep in [place and (number + place) % 3]  # of each trouble three devices are not
    ],
    ids=str,
)
def test_a_flood_of_large_pictures_has_the_rows_that_are_in_time(
    device: Device, trouble: str
) -> None:
    """Whatever happened before, and though times vary."""
    chance = random.Random(7)
    scheduler = Scheduler(Limits(max_batch=8, max_running=64, max_step_ms=device.limit_ms))
    calls: list[int] = []
    for index in range(1500):
        while len(scheduler.live) < 40:
            spec = RowSpec(PromptIds(((),), 0), 0, 512, 512, 50)
            scheduler.add(Trajectory(f"{index} {len(scheduler.live)}", spec))
        batch = _next(scheduler)
        seconds = device.call_s + device.row_s * batch.unet_rows
        seconds = seconds * chance.uniform(0.97, 1.03) + TROUBLES[trouble].get(index, 0.0)
        calls.append(batch.unet_rows)
        scheduler.advance(batch, Advanced({}, Measured(batch.key, batch.unet_rows, seconds)))
    settled = Counter(calls[600:])
    in_time = {max(1, device.rows - 1), device.rows}  # times vary about the limit
    assert settled.total() - sum(settled[rows] for rows in in_time) <= 0.02 * settled.total()
    mean = sum(rows * times for rows, times in settled.items()) / settled.total()
    assert mean > 0.6 * device.rows


def test_without_a_limit_calls_are_full() -> None:
    scheduler = Scheduler(Limits.model_validate({"max_step_ms": float("inf")}))
    for index in range(8):
        scheduler.add(Trajectory(str(index), RowSpec(PromptIds(((),), 0), 0, 512, 512, 9)))
    for _ in range(9):
        batch = _next(scheduler)
        assert batch.unet_rows == 8
        scheduler.advance(batch, Advanced({}, Measured(batch.key, 8, 100.0)))


def test_small_pictures_share_calls_as_before() -> None:
    scheduler = Scheduler(Limits(max_batch=8, max_step_ms=100.0))
    for index in range(8):
        scheduler.add(Trajectory(str(index), RowSpec(PromptIds(((),), 0), index, 64, 64, 4)))
    for _ in range(4):
        batch = _next(scheduler)
        assert batch.unet_rows == 8
        seconds = device_s(batch.key, 8)
        scheduler.advance(batch, Advanced({}, Measured(batch.key, 8, seconds)))


def _next(scheduler: Scheduler) -> Batch:
    for joining in scheduler.joining(0.0):
        scheduler.joined(joining.row_id)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    return batch


def test_what_a_row_takes_in_full_calls_is_told_by_nearly_full_ones_alone() -> None:
    tempo = Tempo()
    key = BatchKey(8, 8)
    assert tempo.row_s(key, 8) == 0
    for rows, seconds in [(1, 1.0), (3, 1.5), (4, 1.6), (8, 2.4)]:
        tempo.measure(Measured(key, rows, 60.0))  # the first compiles
        tempo.measure(Measured(key, rows, seconds))
        known = {1: 0.0, 3: 0.0, 4: 0.4, 8: 0.3}[rows]
        assert tempo.row_s(key, 8) == pytest.approx(known)
    assert tempo.row_s(key, 16) == pytest.approx(0.3)
    assert tempo.row_s(key, 18) == 0
    assert tempo.row_s(key, 5) == pytest.approx(0.4)  # by the nearest, not by the fastest
    assert tempo.row_s(BatchKey(16, 16), 8) == 0
