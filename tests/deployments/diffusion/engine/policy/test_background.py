"""Requests of the lowest priority have what is idle, and beside others a share of the time."""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import inf

import pytest

from benchmarks.report import percentile
from configs.app import Limits
from deployments.contracts.jobs import BACKGROUND, Caller
from deployments.diffusion.engine.policy.background import ABOUT_S, Background
from deployments.diffusion.engine.policy.batch import Advanced, Batch, Measured
from deployments.diffusion.engine.policy.scheduler import Scheduler
from deployments.diffusion.engine.policy.trajectory import Status, Trajectory
from tests.deployments.diffusion.engine.policy.test_fairness import OTHER, kept_full, row

SHARE = Limits().background_share
ROW_S = 0.025  # of a call, for each of its rows of 8 x 8 latent pixels
SOMEONE = Caller("someone")


@dataclass
class Device:
    """An engine in a time of its own.

    Attributes:
        decode_s: what the VAE takes for a row of 8 x 8 latent pixels, beside the calls.
        spent: seconds of calls and of the VAE, by whose rows were in them.
        calls: rows of each call, by caller.
    """

    limits: Limits = field(default_factory=lambda: Limits(max_batch=8))
    decode_s: float = 0.0
    now: float = 1000.0
    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: list[Counter[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits)

    def come(self, *rows: Trajectory) -> None:
        for one in rows:
            self.scheduler.add(one)

    def turn(self, until: float = inf) -> Batch | None:
        """A call; or, where none is to be made, what the engine waits for."""
        for one in self.scheduler.joining(self.now):
            self.scheduler.joined(one.row_id)
        batch = self.scheduler.schedule(self.now)
        if batch is None:
            resumes = self.scheduler.resumes
            self.now = min(until, inf if resumes is None else resumes)
            return None
        took = ROW_S * batch.unet_rows * batch.key.pixels / 64
        measured = Measured(batch.key, batch.unet_rows, took)
        for one in self.scheduler.advance(batch, Advanced({}, measured)):
            self.scheduler.beside(one, self.decode_s)
            self.spent[one.caller.name] += self.decode_s
        self.now += took
        for one in batch.rows:
            self.spent[one.caller.name] += took / len(batch.rows)
        self.calls.append(Counter(one.caller.name for one in batch.rows))
        return batch

    def lines(self, caller: Caller = SOMEONE, rows: int = 8, steps: int = 4) -> None:
        """A batch that never ends."""
        kept_full(self.scheduler, lambda: behind(caller, steps), rows)


def behind(caller: Caller = SOMEONE, steps: int = 4, side: int = 64) -> Trajectory:
    return row(caller.in_background, steps, side, priority=BACKGROUND)


def traffic(device: Device, rate: float, seconds: float, *, lines: bool) -> list[float]:
    """Seconds that requests take which come at random."""
    chance = random.Random(3)
    end = device.now + seconds
    due, waiting, took = device.now, dict[str, tuple[Trajectory, float]](), list[float]()
    while device.now < end:
        while due <= device.now:
            one = row(OTHER)
            waiting[one.row_id] = (one, due)
            device.come(one)
            due += chance.expovariate(rate)
        if lines:
            device.lines()
        device.turn(due)
        for one, came in list(waiting.values()):
            if one.status is Status.FINISHED:
                took.append(device.now - came)
                del waiting[one.row_id]
    return took


def test_alone_it_has_everything() -> None:
    device = Device()
    for _ in range(50):
        device.lines()
        device.turn()
    assert device.now == pytest.approx(1000.0 + device.spent[SOMEONE.in_background.name])
    assert {sum(one.values()) for one in device.calls} == {8}


@pytest.mark.parametrize("decode_s", [0.0, 2 * ROW_S])
@pytest.mark.parametrize("share", [0.05, 0.2])
@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_beside_others_it_has_its_share_of_the_time(
    load: float, share: float, decode_s: float
) -> None:
    device = Device(Limits(max_batch=8, background_share=share), decode_s)
    took_s = 4 * ROW_S
    traffic(device, load / took_s, 300.0, lines=True)
    (mine,) = (spent for name, spent in device.spent.items() if name != OTHER.name)
    assert mine <= 1.01 * share * 300.0
    if load < 0.9:  # of a busy device it has its weight's part of the steps, where that is less
        assert mine >= 0.6 * share * 300.0
    assert max(one[SOMEONE.in_background.name] for one in device.calls) == 1


@pytest.mark.parametrize("load", [0.1, 0.3, 0.6])
def test_others_are_not_delayed_by_more(load: float) -> None:
    rate = load / (4 * ROW_S)
    alone = traffic(Device(), rate, 300.0, lines=False)
    beside = traffic(Device(), rate, 300.0, lines=True)
    for share in (0.5, 0.95):
        assert percentile(beside, share) <= 1.2 * percentile(alone, share)


def test_all_callers_of_it_share_one_share() -> None:
    device = Device()
    end = device.now + 200.0
    while device.now < end:
        for name in ("a", "b", "c"):
            device.lines(Caller(name))
        kept_full(device.scheduler, lambda: row(OTHER, 1, 64), 1)
        device.turn()
    mine = sum(spent for name, spent in device.spent.items() if name != OTHER.name)
    assert mine <= SHARE * 200.0 + 8 * ROW_S  # a call that nobody had timed cost nothing


def test_it_has_all_again_once_others_are_gone() -> None:
    device = Device()
    for _ in range(100):  # nothing of this is held against it later
        device.lines()
        device.turn()
    device.come(row(OTHER))
    while any(one.caller == OTHER for one in device.scheduler.live):
        device.lines()
        device.turn()
    gone = device.now
    device.calls.clear()
    seen: list[tuple[float, int]] = []
    while device.now < gone + 2 * ABOUT_S:
        device.lines()
        began = device.now - gone
        if (batch := device.turn()) is not None:
            seen.append((began, len(batch.rows)))
    beside = [began for began, _ in seen if began < ABOUT_S - 1]
    assert 0.8 * SHARE * ABOUT_S <= ROW_S * len(beside) <= SHARE * ABOUT_S
    assert {rows for began, rows in seen if began < ABOUT_S - 1} == {1}
    alone = [(began, rows) for began, rows in seen if began > ABOUT_S]
    assert {rows for _, rows in alone} == {8}
    assert sum(ROW_S * rows for _, rows in alone) == pytest.approx(ABOUT_S, rel=0.05)


def test_a_share_of_all_is_no_rest() -> None:
    device = Device(Limits(max_batch=8, background_share=1.0))
    device.come(row(OTHER, 2))
    began = device.now
    for _ in range(20):
        device.lines()
        device.turn()
    assert device.now - began == pytest.approx(sum(device.spent.values()))


def test_a_new_share_counts_from_the_next_call_on() -> None:
    device = Device()
    device.scheduler.reconfigure(Limits(background_share=0.5))
    traffic(device, 3.0, 100.0, lines=True)
    assert device.spent[SOMEONE.in_background.name] > 0.3 * 100.0


def booked(*measured: Measured) -> Scheduler:
    """One that timed these calls of others, and then booked one for a batch of 128 x 128."""
    scheduler = Scheduler(Limits(max_batch=8))
    scheduler.add(row(OTHER, len(measured)))
    for one in scheduler.joining(0.0):
        scheduler.joined(one.row_id)
    for now, call in enumerate(measured):
        batch = scheduler.schedule(float(now))
        assert batch is not None
        scheduler.advance(batch, Advanced({}, call))
    scheduler.add(behind(steps=2, side=128))
    for one in scheduler.joining(5.0):
        scheduler.joined(one.row_id)
    batch = scheduler.schedule(5.0)
    assert batch is not None
    scheduler.advance(batch, Advanced({}))  # a GPU is launched ahead: it is timed later
    return scheduler


def timed(side: int, rows: int, seconds: float) -> Measured:
    return Measured(behind(side=side).key, rows, seconds)


@pytest.mark.parametrize(
    ("calls", "costs"),
    [
        # Of other sizes, in proportion to pixels; of its own, if there are some.
        ([timed(64, 1, 0.01), timed(64, 1, 0.01)], 0.04),
        ([timed(64, 2, 0.02), timed(64, 2, 0.02)], 0.04),
        ([timed(64, 1, 0.01), timed(64, 1, 0.01), timed(128, 1, 0.02), timed(128, 1, 0.02)], 0.02),
        # A first one may have compiled, and one may have been held up.
        ([timed(128, 1, 30.0), timed(128, 1, 0.02), timed(128, 1, 0.02)], 0.02),
        ([timed(128, 1, 0.02), timed(128, 1, 0.02), timed(128, 1, 30.0)], 0.02),
    ],
)
def test_what_a_call_costs_is_known_by_those_before(calls: list[Measured], costs: float) -> None:
    scheduler = booked(*calls)
    assert scheduler.schedule(5.01) is None
    assert scheduler.resumes == pytest.approx(5.0 + costs / SHARE)


def test_what_nobody_has_timed_costs_nothing() -> None:
    scheduler = booked(timed(128, 1, 30.0))  # it may have compiled
    assert scheduler.schedule(5.01) is not None


def test_nothing_rests_where_nobody_waits() -> None:
    device = Device()
    assert device.scheduler.resumes is None
    device.come(row(OTHER, 1))
    device.turn()
    assert device.turn(device.now) is None
    assert device.scheduler.resumes is None


def test_nobody_is_about_before_the_first_has_come() -> None:
    background = Background(0.05)
    background.had(1.0, 0.0)
    assert not background.about(0.0)
    background.others(0.5)
    assert not background.rests(0.5)


def test_who_rests_holds_nobody_up() -> None:
    """Neither one that has just come, nor those of it that are held back."""
    scheduler = Scheduler(Limits(max_batch=8))
    for _ in range(16):
        scheduler.add(row(OTHER, 4))
    for one in scheduler.joining(0.0):
        scheduler.joined(one.row_id)
    first = scheduler.schedule(0.0)
    assert first is not None
    scheduler.advance(first, Advanced({}))
    scheduler._background.had(1.0, 0.0)
    scheduler.add(behind())
    scheduler.joining(0.1)  # it is being made ready
    batch = scheduler.schedule(0.1)
    assert batch is not None
    assert len(batch.rows) == 8
