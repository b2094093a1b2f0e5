"""The queue is shared between callers, and whoever is refused is told when to come back."""

from collections.abc import Callable
from contextlib import nullcontext
from time import monotonic

import numpy as np
import pytest

from configs.app import Limits
from deployments.contracts.errors import QueueFull
from deployments.contracts.figures import CallerFigures
from deployments.contracts.jobs import Caller, FailedImage, FinishedImage, ImageJob
from deployments.diffusion.engine.policy import registry as registry_module
from deployments.diffusion.engine.policy.batch import Batch, BatchKey, Measured
from deployments.diffusion.engine.policy.deadlines import Deadlines
from deployments.diffusion.engine.policy.estimate import SMOOTHING, Work
from deployments.diffusion.engine.policy.foresight import Foresight
from deployments.diffusion.engine.policy.registry import (
    FORGOTTEN_AFTER_S,
    IDLE_CALLERS,
    Entry,
    Registry,
    Standing,
)
from deployments.diffusion.engine.policy.spec import PromptIds, RowSpec, Source

LIMITS = Limits(max_pending=16)
FLOOD, OTHER = Caller("flood"), Caller("other")
PIXELS = 64  # of a latent of 64 x 64 pixels


def entry(
    job_id: str,
    n: int = 1,
    caller: Caller = FLOOD,
    steps: int = 10,
    *,
    refused_elsewhere: bool = False,
    source: Source | None = None,
    timeout_s: float | None = None,
) -> Entry:
    job = ImageJob(
        job_id,
        "",
        tuple(range(n)),
        64,
        64,
        num_inference_steps=steps,
        caller=caller,
        refused_elsewhere=refused_elsewhere,
        timeout_s=timeout_s,
    )
    specs = [RowSpec(PromptIds(((),), 0), seed, 64, 64, steps, source=source) for seed in job.seeds]
    return Entry(job, lambda _: None, specs)


def measured(clock: Callable[[], float] = monotonic) -> Registry:
    """A registry to which a row's step takes a second, of four at once, and the VAE nothing to
    speak of."""
    registry = Registry("engine", clock)
    registry.measure_step(Measured(BatchKey(8, 8), 1, 1.0))
    registry.count_decode(PIXELS, 1e-6)
    registry.publish(Standing(Work(at_once=4), 0, 0, 4))
    return registry


def refused(registry: Registry, new: Entry) -> float:
    """Seconds that it was told."""
    with pytest.raises(QueueFull) as full:
        registry.open(new, LIMITS)
    return full.value.retry_after_ms / 1000


def test_a_sole_caller_has_the_whole_queue_and_no_more() -> None:
    registry = measured()
    registry.open(entry("all", 16), LIMITS)
    with pytest.raises(QueueFull, match="16 of 16 images are pending; room for 1 more"):
        registry.open(entry("one"), LIMITS)


def test_a_full_queue_takes_others_up_to_their_share() -> None:
    registry = measured()
    registry.open(entry("flood", 16), LIMITS)
    registry.open(entry("ten", 8, OTHER), LIMITS)
    refused(registry, entry("too many", 1, OTHER))
    refused(registry, entry("more", 1))
    registry.open(entry("third", 6, Caller("third")), LIMITS)
    refused(registry, entry("fourth", 3, Caller("fourth")))
    registry.open(entry("twice", 2, Caller("fourth")), LIMITS)
    assert registry.figures().pending_images == 32
    refused(registry, entry("full", 1, Caller("fifth")))


def test_a_share_is_by_weight() -> None:
    registry = measured()
    registry.open(entry("flood", 16), LIMITS)
    registry.open(entry("heavy", 12, Caller("heavy", 3.0)), LIMITS)
    refused(registry, entry("more", 1, Caller("heavy", 3.0)))


def test_whoever_has_its_share_waits_for_its_own_images() -> None:
    registry = measured()
    registry.open(entry("flood", 16, steps=50), LIMITS)
    registry.open(entry("other", 8, OTHER, steps=4), LIMITS)
    told = refused(registry, entry("more", 1, OTHER))
    assert told == pytest.approx(2 * 4 * 4, rel=0.01), "four rows' four steps, at half the pace"
    assert refused(registry, entry("flood's", 1)) > 100, "eight of its images must go"


def test_those_refused_are_told_one_place_after_the_other() -> None:
    registry = measured()
    registry.open(entry("flood", 16), LIMITS)
    told = [refused(registry, entry(str(n))) for n in range(40)]
    assert told[0] == pytest.approx(40)
    assert told[:17] == sorted(told[:17])
    assert len(set(told[:13])) == 13, "not all at once"
    assert max(told) == pytest.approx(160), "never later than all that is pending"


def test_of_replicas_that_refuse_a_job_one_expects_it_back() -> None:
    """Twelve who ask both: each is told the next place of the one that refused it first."""
    first, second = measured(), measured()
    for replica in (first, second):
        replica.open(entry("flood", 16), LIMITS)
    soonest: list[float] = []
    for number in range(12):
        asked = (first, second) if number % 2 else (second, first)
        told = [
            refused(replica, entry(str(number), refused_elsewhere=again))
            for again, replica in zip((False, True), asked, strict=True)
        ]
        soonest.append(min(told))
    alone = measured()
    alone.open(entry("flood", 16), LIMITS)
    places = [refused(alone, entry(str(number))) for number in range(6)]
    assert soonest == [place for place in places for _ in range(2)]


def test_what_was_promised_is_forgotten_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("deployments.diffusion.engine.policy.registry.monotonic", lambda: now)
    registry = measured()
    registry.open(entry("flood", 16), LIMITS)
    first = refused(registry, entry("a"))
    assert refused(registry, entry("b")) > first
    now = 1000.0
    assert refused(registry, entry("c")) == first


def test_one_callers_refusals_put_no_other_off() -> None:
    registry = measured()
    registry.open(entry("flood", 16, OTHER), LIMITS)
    registry.open(entry("mine", 8), LIMITS)
    first = refused(registry, entry("first"))
    for n in range(20):
        refused(registry, entry(str(n), 1, OTHER))
    second = refused(registry, entry("second"))
    assert first < second <= first + 2 * 20 + 1


def test_images_that_wait_for_the_vae_alone_count() -> None:
    """Also before its time was measured: 0.0 s pending with 128 images waiting is never true."""
    registry = Registry("engine")
    limits = Limits(max_pending=128)
    full = entry("decoding", 128)
    registry.open(full, limits)
    registry.seen(full)
    full.rows.clear()
    registry.publish(Standing(Work(decoding=128, decode_pixels=128 * 4096), 0, 0, 8))
    assert registry.figures().pending_seconds == pytest.approx(64)
    with pytest.raises(QueueFull) as told:
        registry.open(entry("more"), limits)
    assert told.value.retry_after_ms == 500


def test_a_callers_figures_are_what_it_has_and_had() -> None:
    registry = Registry("engine")
    mine, others = entry("mine", 2, OTHER), entry("others", 1)
    registry.open(mine, LIMITS)
    registry.open(others, LIMITS)
    first = mine.rows[0]
    first.slot = 0
    registry.count_step(Batch(first.key, (first, others.rows[0])))
    assert {figures.name: figures for figures in registry.figures().callers} == {
        "other": CallerFigures("other", 1, 2, PIXELS),
        "flood": CallerFigures("flood", 0, 1, PIXELS),
    }
    del mine.rows[0]
    registry.answer(mine, FailedImage(0, ValueError("odd")))
    registry.end(mine, ValueError("odd"))
    assert CallerFigures("other", 0, 0, PIXELS) in registry.figures().callers


def test_idle_callers_are_forgotten_one_day() -> None:
    registry = Registry("engine")
    stays = entry("stays", 1, OTHER)
    registry.open(stays, LIMITS)
    for n in range(3 * IDLE_CALLERS):
        gone = entry(str(n), 1, Caller(str(n)))
        registry.open(gone, LIMITS)
        registry.end(gone, ValueError("odd"))
    names = [figures.name for figures in registry.figures().callers]
    assert len(names) <= IDLE_CALLERS + 2
    assert "other" in names
    assert str(3 * IDLE_CALLERS - 1) in names


def test_what_is_refused_is_counted() -> None:
    registry = measured()
    registry.open(entry("all", 16), LIMITS)
    for job in ("one", "two"):
        refused(registry, entry(job))
    assert registry.figures().refused_total == 2
    assert registry.figures().pending_images == 16


def test_times_of_calls_and_waits_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(registry_module, "monotonic", lambda: now)
    registry = Registry("engine")
    first, second = entry("first"), entry("second")
    now = 102.0
    registry.count_first(first)
    now = 105.0
    registry.count_first(second)
    for seconds in (0.25, 0.5):
        registry.measure_step(Measured(BatchKey(8, 8), 3, seconds))
        registry.count_decode(PIXELS, 2 * seconds)
    figures = registry.figures()
    assert (figures.begun_total, figures.wait_seconds_total) == (2, 7.0)
    assert (figures.timed_steps_total, figures.timed_step_seconds_total) == (2, 0.75)
    assert figures.vae_seconds_total == 1.5


def test_the_background_is_charged_by_what_decodes_took_once_two_were_timed() -> None:
    """The first may compile; previews have a decoder of their own, perhaps a tiny one."""
    registry = Registry("engine")
    assert registry.decode_s(PIXELS) == registry.decode_s(PIXELS, preview=True) == 0.0
    registry.count_decode(PIXELS, 30.0)
    assert registry.decode_s(PIXELS) == 0.0
    registry.count_decode(PIXELS, 0.5)
    assert registry.decode_s(4 * PIXELS) == pytest.approx(2.0)
    for seconds in (3.0, 0.01):
        registry.count_decode(PIXELS, seconds, preview=True)
    assert registry.decode_s(PIXELS, preview=True) == pytest.approx(0.01)
    assert registry.decode_s(PIXELS) == pytest.approx(0.5)
    assert registry.figures().vae_seconds_total == 30.5


@pytest.mark.parametrize("masked", [False, True])
def test_a_start_picture_counts_once_a_job_when_two_were_timed(masked: bool) -> None:
    now = 100.0
    registry = Registry("engine", lambda: now)
    registry.measure_step(Measured(BatchKey(8, 8), 1, 1e-9))
    registry.count_decode(PIXELS, 1e-9)
    picture = np.zeros((64, 64, 3), np.uint8)
    source = Source(picture, picture[:, :, 0] if masked else None)
    registry.open(entry("plain", 3), LIMITS)
    registry.open(entry("from it", 4, source=source), LIMITS)
    assert registry.encode_s(PIXELS) == 0.0
    registry.count_encode(PIXELS, 30.0)
    assert registry.encode_s(PIXELS) == 0.0, "a first call may compile"
    assert registry.figures().arriving_seconds == pytest.approx(0.0, abs=1e-6)
    registry.count_encode(PIXELS, 0.25)
    assert registry.encode_s(2 * PIXELS) == pytest.approx(0.5)
    figures = registry.figures()
    assert figures.arriving_seconds == pytest.approx(0.25 / 30, abs=1e-6)
    assert (figures.vae_encode_seconds_total, figures.vae_seconds_total) == (30.25, 1e-9)


def test_what_came_and_what_waits_are_in_the_figures_at_once() -> None:
    """A second for each of ten steps, and half a second for the VAE: 10.5 in half a minute."""
    now = 100.0
    registry = Registry("engine", lambda: now)
    registry.measure_step(Measured(BatchKey(8, 8), 1, 1.0))
    registry.count_decode(PIXELS, 0.5)
    new = entry("new")
    registry.open(new, LIMITS)
    assert registry.figures().pending_seconds == pytest.approx(10.0)  # the slower of the two
    assert registry.figures().arriving_seconds == pytest.approx(10.5 / 30)
    registry.seen(new)
    registry.publish(Standing(Work(decoding=1, decode_pixels=PIXELS), 0, 0, 4))
    assert registry.figures().pending_seconds == pytest.approx(0.5)
    now += 31
    assert registry.figures().arriving_seconds == 0.0
    with pytest.raises(QueueFull):
        registry.open(entry("refused", 32), LIMITS)
    assert registry.figures().arriving_seconds == 0.0


def test_a_failure_to_load_is_told_for_a_while() -> None:
    now = 100.0
    registry = Registry("engine", lambda: now)
    registry.publish(Standing(Work(), 0, 0, 4, failed={7: 130.0, 8: 160.0}))
    assert registry.report().failed == {7, 8}
    now = 130.0
    assert registry.report().failed == {8}


def foreseeing(clock: Callable[[], float] = monotonic) -> Registry:
    """A registry to which a call of a row takes a second, and this is known for sure."""
    registry, size = measured(clock), BatchKey(8, 8)
    registry.measure_step(Measured(size, 1, 1.0))
    registry.publish(
        Standing(Work(at_once=1), 0, 0, 1, Foresight(Deadlines(), {size: 1.0}, {size: 1.0}))
    )
    return registry


def test_who_would_come_too_late_is_told_at_once_and_when_to_come_back() -> None:
    registry = foreseeing()
    registry.open(entry("before", 5, timeout_s=50.0), LIMITS)
    with pytest.raises(QueueFull, match="what is pending leaves no time for 1 more within 50") as (
        first
    ):
        registry.open(entry("late", timeout_s=50.0), LIMITS)
    with pytest.raises(QueueFull) as second:
        registry.open(entry("late, too", timeout_s=50.0), LIMITS)
    assert second.value.full_ms == pytest.approx(first.value.full_ms, abs=100)
    # The first is done before the second has room: ten steps.
    assert second.value.retry_after_ms == pytest.approx(
        first.value.retry_after_ms + 10_000, abs=100
    )
    # Then one more has room, beside the one that comes back.
    assert first.value.full_ms == first.value.retry_after_ms + 10_000
    assert registry.figures().refused_total == 2
    assert registry.figures().pending_images == 5


def test_who_has_time_enough_or_asks_as_somebody_else_is_taken() -> None:
    registry = foreseeing()
    registry.open(entry("before", 5, timeout_s=90.0), LIMITS)
    registry.open(entry("in time", timeout_s=95.0), LIMITS)
    registry.open(entry("any time"), LIMITS)
    registry.open(entry("another's", 1, OTHER, timeout_s=60.0), LIMITS)
    registry.open(entry("never", timeout_s=9.0), LIMITS)  # that is told when its time is over


def test_who_takes_turns_with_others_is_told_when_it_would_be_too_late_for_that() -> None:
    registry = foreseeing()
    registry.open(entry("before", 5), LIMITS)
    registry.open(entry("another's", 1, OTHER, timeout_s=30.0), LIMITS)  # ten steps of each
    with pytest.raises(QueueFull, match="leaves no time for 1 more within 30"):
        registry.open(entry("another's second", 1, OTHER, timeout_s=30.0), LIMITS)


@pytest.mark.parametrize(
    ("calls", "later_s", "is_refused"),
    [(0, 0, False), (10, 0, True), (10, 5, True), (10, 60, False)],
)
def test_what_others_had_of_late_is_expected_of_them_again(
    calls: int, later_s: float, is_refused: bool
) -> None:
    """Not what was accepted of them alone."""
    now = 100.0
    registry = foreseeing(lambda: now)
    theirs = entry("theirs", 4, OTHER)
    registry.open(theirs, LIMITS)
    for _ in range(calls):
        registry.count_step(Batch(BatchKey(8, 8), tuple(theirs.rows.values())))
        now += 4
    registry.end(theirs, RuntimeError())
    now += later_s
    registry.open(entry("first", timeout_s=33.0), LIMITS)
    with pytest.raises(QueueFull) if is_refused else nullcontext():
        registry.open(entry("second", timeout_s=33.0), LIMITS)


def test_however_little_a_weight_nobody_is_told_to_come_later_than_all_that_is_pending() -> None:
    now = 100.0
    registry = foreseeing(lambda: now)
    heavy = entry("heavy", 5, Caller("heavy", 1000.0), timeout_s=90.0)
    registry.open(heavy, LIMITS)
    for _ in range(10):
        registry.count_step(Batch(BatchKey(8, 8), tuple(heavy.rows.values())))
        now += 5
    with pytest.raises(QueueFull) as told:
        registry.open(entry("light", 1, Caller("light", 0.001), timeout_s=20.0), LIMITS)
    assert told.value.retry_after_ms <= 50_000


def test_for_how_long_there_is_no_room_does_not_grow_with_those_who_ask() -> None:
    registry = measured()
    registry.open(entry("all", 16), LIMITS)
    told = []
    for name in "abc":
        with pytest.raises(QueueFull) as full:
            registry.open(entry(name), LIMITS)
        told.append(full.value)
    assert {one.full_ms for one in told} == {told[0].retry_after_ms}
    assert told[0].retry_after_ms < told[1].retry_after_ms < told[2].retry_after_ms


def test_what_an_image_takes_after_its_steps_is_learnt_and_forgotten() -> None:
    now = 0.0
    registry = Registry("engine", lambda: now)
    assert registry.after_steps_s == 0.0
    ended = entry("job")
    registry.open(ended, LIMITS)
    for stage in ("condition", "steps"):
        ended.clock.begun(stage)
    ended.clock.ended("steps")
    ended.clock._ends["steps"] -= 2.0
    made = FinishedImage(0, 0, np.zeros((8, 8, 3), np.uint8), np.zeros((4, 1, 1), np.float32))
    registry.answer(ended, made)
    assert registry.after_steps_s == pytest.approx(SMOOTHING * 2.0, rel=0.1)
    now = FORGOTTEN_AFTER_S
    assert registry.after_steps_s == 0.0
