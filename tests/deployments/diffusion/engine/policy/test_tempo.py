"""Calls are kept to the time that they may last, by what calls took before."""

import random

import pytest

from configs.app import Limits
from deployments.contracts.jobs import Caller
from deployments.diffusion.engine.policy.batch import Advanced, Batch, BatchKey, Measured
from deployments.diffusion.engine.policy.scheduler import Scheduler
from deployments.diffusion.engine.policy.spec import PromptIds, RowSpec
from deployments.diffusion.engine.policy.tempo import SIZES, Tempo
from deployments.diffusion.engine.policy.trajectory import Trajectory

SMALL, LARGE = BatchKey(8, 8), BatchKey(64, 64)


def device_s(call: BatchKey, rows: int) -> float:
    """A device to which a call costs 10 ms, and 50 ms for each row of 64 x 64."""
    return 0.010 + 0.050 * rows * call.pixels / LARGE.pixels


def timed(tempo: Tempo, key: BatchKey, rows: int, times: int = 1) -> None:
    for _ in range(times):
        tempo.measure(Measured(key, rows, device_s(key, rows)))


def test_nothing_is_known_before_anything_was_timed() -> None:
    assert Tempo().rows_within(LARGE, 0.5) is None


def test_one_count_of_rows_is_taken_in_proportion() -> None:
    tempo = Tempo()
    timed(tempo, LARGE, 4, 3)
    assert tempo.rows_within(LARGE, device_s(LARGE, 4) + 1e-9) == 4
    assert tempo.rows_within(LARGE, 2 * device_s(LARGE, 4) + 1e-9) == 8
    assert tempo.rows_within(LARGE, device_s(LARGE, 4) / 5) == 0


def test_several_counts_show_what_the_call_itself_costs() -> None:
    tempo = Tempo()
    for _ in range(100):
        timed(tempo, LARGE, 1)
        timed(tempo, LARGE, 8)
    for rows in (1, 3, 8, 20):
        assert tempo.rows_within(LARGE, device_s(LARGE, rows) + 0.01) == rows


def test_first_calls_with_so_many_rows_are_not_counted() -> None:
    tempo = Tempo()
    for rows in (8, 4, 2):
        tempo.measure(Measured(LARGE, rows, 60.0))  # it compiles
        timed(tempo, LARGE, rows)
    assert tempo.rows_within(LARGE, device_s(LARGE, 4)) in (3, 4)


def test_a_slow_call_is_forgotten() -> None:
    tempo = Tempo()
    timed(tempo, LARGE, 4, 20)
    tempo.measure(Measured(LARGE, 4, 100 * device_s(LARGE, 4)))
    assert tempo.rows_within(LARGE, device_s(LARGE, 4)) == 0
    timed(tempo, LARGE, 1, 120)
    assert tempo.rows_within(LARGE, device_s(LARGE, 3) + 0.02) in (2, 3)


def test_an_untimed_size_goes_by_the_one_timed_last() -> None:
    tempo = Tempo()
    timed(tempo, LARGE, 4, 3)
    twice = BatchKey(64, 128)
    assert tempo.rows_within(twice, device_s(LARGE, 4) + 1e-9) == 2
    assert tempo.rows_within(BatchKey(64, 128, 16), 2 * device_s(LARGE, 4) + 1e-9) == 4


def test_what_is_kept_is_bounded() -> None:
    tempo = Tempo()
    for height in range(SIZES + 50):
        timed(tempo, BatchKey(8 + height, 8), 2, 2)
    assert len(tempo._sizes) == SIZES


@pytest.mark.parametrize("limit_ms", [30.0, 120.0, 300.0])
def test_a_flood_of_large_pictures_never_holds_the_device_longer(limit_ms: float) -> None:
    """A device whose times vary; the scheduler learns how many rows it may have."""
    chance = random.Random(7)
    scheduler = Scheduler(Limits(max_batch=8, max_running=64, max_step_ms=limit_ms))
    for index in range(40):
        spec = RowSpec(PromptIds(((),), 0), index, 512, 512, 50)
        scheduler.add(Trajectory(f"large {index}", spec, caller=Caller("flood")))
    calls: list[tuple[int, float]] = []
    for _ in range(200):
        batch = _next(scheduler)
        seconds = device_s(batch.key, batch.unet_rows) * chance.uniform(0.97, 1.03)
        calls.append((batch.unet_rows, seconds))
        scheduler.advance(batch, Advanced({}, Measured(batch.key, batch.unet_rows, seconds)))
    learnt = calls[4:]
    most = max(1, int((limit_ms / 1e3 - 0.010) / 0.050))
    assert {rows for rows, _ in learnt} <= {max(1, most - 1), most, most + (limit_ms > 100)}
    over = [seconds for rows, seconds in learnt if rows > 1 and seconds > 1.2 * limit_ms / 1e3]
    assert not over
    assert max(rows for rows, _ in learnt) >= max(1, most - 1), "no less than the time allows"


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
    for joining in scheduler.joining():
        scheduler.joined(joining.row_id)
    batch = scheduler.schedule()
    assert batch is not None
    return batch
