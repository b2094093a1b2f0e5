"""Limits hold for all ingresses together: two of them, and the ledger between."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from configs.keys import KeyEntry
from deployments.contracts.errors import QueueFull, RateLimited
from deployments.contracts.jobs import Caller
from deployments.contracts.usage import KeyReport, KeyTotals, OtherReports, Report
from deployments.ingress.keys.account import SILENT_S
from deployments.ingress.keys.ledger import FORGET_S, Ledger
from deployments.ingress.keys.ledger import SILENT_S as GONE_S
from deployments.ingress.keys.quota import Quota
from tests.deployments.ingress.keyed import Clock, Keys, entry

ALICE = Caller("alice")


class Front:
    """An ingress, and the requests that it holds."""

    def __init__(self, ledger: Ledger, clock: Clock, *entries: KeyEntry) -> None:
        self.quota = Quota(Keys(*entries), clock)
        self._ledger = ledger
        self._tasks: list[asyncio.Task[None]] = []

    def exchange(self) -> None:
        quota = self.quota
        quota.hear(self._ledger.exchange(quota.ingress_id, quota.report()))

    async def ask(self, count: int, images: int = 1) -> None:
        for _ in range(count):
            self._tasks.append(asyncio.create_task(self._hold(images)))
        await settled()

    async def finish(self, count: int) -> None:
        """The oldest requests that it holds are done, or give up waiting."""
        for task in self._tasks[:count]:
            task.cancel()
        await asyncio.gather(*self._tasks[:count], return_exceptions=True)
        del self._tasks[:count]
        await settled()

    @property
    def running(self) -> int:
        return self.quota.report().get("alice", KeyReport()).running

    async def _hold(self, images: int) -> None:
        with self.quota.lease(ALICE, images) as lease:
            await lease.turn()
            await asyncio.sleep(3600)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def two(run: Callable[[Front, Front, Clock], Awaitable[None]], **limits: object) -> None:
    """Runs a test over two ingresses."""

    async def whole() -> None:
        clock = Clock()
        ledger = Ledger(clock)
        one, other = (Front(ledger, clock, entry("alice", **limits)) for _ in range(2))
        try:
            await run(one, other, clock)
        finally:
            await one.finish(10**6)
            await other.finish(10**6)

    asyncio.run(whole())


async def told(fronts: Sequence[Front]) -> None:
    """Everybody knows everything."""
    for front in (*fronts, *fronts):
        front.exchange()
    await settled()


def test_places_are_shared() -> None:
    async def run(one: Front, other: Front, clock: Clock) -> None:
        await one.ask(3)
        await told([one, other])
        await other.ask(3)
        assert (one.running, other.running) == (3, 1)
        await told([one, other])
        await one.finish(2)
        assert other.running == 1  # nobody has told it yet
        await told([one, other])
        assert (one.running, other.running) == (1, 3)
        shown = other.quota.usage_of("alice")
        assert (shown.running, shown.waiting) == (4, 0)

    two(run, running=4)


async def begin(front: Front) -> None:
    """A request of alice's, which ends when its turn has come."""
    with front.quota.lease(ALICE, 1) as lease:
        await lease.turn()


def test_those_who_wait_are_counted_together() -> None:
    async def run(one: Front, other: Front, clock: Clock) -> None:
        await one.ask(3)  # one runs, two wait
        await told([one, other])
        await other.ask(1)
        with pytest.raises(RateLimited, match="1 images in the service and 3 waiting; 3 wait now"):
            await begin(other)
        await told([one, other])
        with pytest.raises(RateLimited, match="3 wait now"):
            await begin(one)

    two(run, running=1, waiting=3)


def test_one_that_always_has_work_does_not_keep_the_place() -> None:
    async def run(one: Front, other: Front, clock: Clock) -> None:
        await one.ask(1)
        await told([one, other])
        await other.ask(1)
        seconds = 0
        while not other.running:
            seconds += 1
            clock.now += 1
            await one.ask(1)
            await one.finish(1)
            await told([one, other])
        assert 2 <= seconds <= 5
        assert one.running == 0

    two(run, running=1)


def test_a_large_request_is_not_passed_for_ever() -> None:
    async def run(one: Front, other: Front, clock: Clock) -> None:
        await one.ask(8)  # four run, four wait
        await told([one, other])
        await other.ask(1, images=4)
        for _ in range(20):
            if other.running:
                break
            clock.now += 1
            await one.ask(1)
            await one.finish(1)
            await told([one, other])
        assert other.running == 4

    two(run, running=4)


def test_equal_crowds_both_get_on() -> None:
    async def run(one: Front, other: Front, clock: Clock) -> None:
        done = {one: 0, other: 0}
        idle = 0
        for _ in range(100):
            clock.now += 1
            for front in (one, other):
                await front.ask(8 - len(front._tasks))
                await told([one, other])
            idle += 4 - one.running - other.running
            assert one.running + other.running <= 4
            for front in (one, other):
                done[front] += front.running
                await front.finish(front.running)
                await told([one, other])
        assert min(done.values()) >= 100
        assert sum(done.values()) >= 300
        assert idle <= 100

    two(run, running=4)


def test_work_is_shared() -> None:
    async def run(one: Front, other: Front, clock: Clock) -> None:
        await told([one, other])
        with one.quota.lease(ALICE, 1) as lease:
            lease.charge(50)
            await told([one, other])
            assert other.quota.usage_of("alice").work_left == 10
            lease.charge(70)
            await told([one, other])
            with pytest.raises(RateLimited) as used_up:
                await begin(other)
            assert used_up.value.retry_after_ms == 10_000
        assert one.quota.usage_of("alice").work_left == 0
        clock.now += 30
        assert [f.quota.usage_of("alice").work_left for f in (one, other)] == [20, 20]

    two(run, work_per_minute=60)


def test_work_that_was_given_back_is_given_back_everywhere() -> None:
    async def run(one: Front, other: Front, clock: Clock) -> None:
        await told([one, other])
        lease = one.quota.lease(ALICE, 1)
        lease.charge(50)
        await told([one, other])
        assert other.quota.usage_of("alice").work_left == 10
        lease.__exit__(QueueFull, QueueFull("the model's queue is full", 1), None)
        await told([one, other])
        assert other.quota.usage_of("alice").work_left == 60

    two(run, work_per_minute=60)


def test_usage_is_of_all() -> None:
    async def run(one: Front, other: Front, clock: Clock) -> None:
        for front in (one, one, other):
            with front.quota.lease(ALICE, 1) as lease:
                lease.charge(7)
                lease.made(2)
        await told([one, other])
        for front in (one, other):
            usage = front.quota.usage_of("alice")
            assert (usage.requests.answered, usage.images, usage.work) == (3, 6, 21)

    two(run)


def test_an_ingress_that_goes_away() -> None:
    async def run(one: Front, other: Front, clock: Clock) -> None:
        with other.quota.lease(ALICE, 1) as lease:
            lease.charge(7)
            lease.made(1)
        await other.ask(4)
        await told([one, other])
        await one.ask(1)
        assert one.running == 0
        clock.now += GONE_S + 1
        one.exchange()
        assert one.running == 1  # its places are free
        for later in (0.0, FORGET_S + 1, 1.0):
            clock.now += later
            one.exchange()
            usage = one.quota.usage_of("alice")
            assert (usage.requests.answered, usage.images, usage.work) == (1, 1, 7)

    two(run, running=4)


def test_an_ingress_that_was_only_stopped() -> None:
    async def run(one: Front, other: Front, clock: Clock) -> None:
        with other.quota.lease(ALICE, 1) as lease:
            lease.charge(7)
        await told([one, other])
        clock.now += GONE_S + 1
        one.exchange()
        assert one.quota.usage_of("alice").work == 7
        await told([one, other])
        assert one.quota.usage_of("alice").work == 7  # counted once

    two(run)


def test_without_the_ledger_its_own_counts_hold() -> None:
    async def run(one: Front, other: Front, clock: Clock) -> None:
        with other.quota.lease(ALICE, 1):
            pass
        await other.ask(2)
        await told([one, other])
        await one.ask(3)
        assert one.running == 0
        clock.now += SILENT_S + 1
        await one.finish(1)  # anything that happens there has it look again
        assert one.running == 2
        assert one.quota.usage_of("alice").requests.answered == 1  # never goes down

    two(run, running=2)


def test_a_ledger_that_was_lost_charges_nobody_twice() -> None:
    async def whole() -> None:
        clock = Clock()
        alice = entry("alice", work_per_minute=60)
        first, second = Ledger(clock), Ledger(clock)
        one, other = Front(first, clock, alice), Front(first, clock, alice)
        await told([one, other])
        for _ in range(3):
            with other.quota.lease(ALICE, 1) as lease:
                lease.charge(20)
            await told([one, other])
        clock.now += 60
        assert one.quota.usage_of("alice").work_left == 60
        for front in (one, other):
            front._ledger = second
        await told([one, other])
        await told([one, other])
        assert one.quota.usage_of("alice").work_left == 60
        new = Front(second, clock, alice)  # what was done before it came is not its debt
        await told([one, other, new])
        assert new.quota.usage_of("alice").work_left == 60
        assert new.quota.usage_of("alice").work == 60

    asyncio.run(whole())


def test_keys_that_only_others_know_yet() -> None:
    """A changed file is not read by all at the same moment."""

    async def whole() -> None:
        clock = Clock()
        ledger = Ledger(clock)
        one = Front(ledger, clock)
        other = Front(ledger, clock, entry("alice", running=1))
        await other.ask(2)
        await told([one, other])
        assert [usage.key for usage in one.quota.usage()] == [""]
        assert one.quota.usage()[0].running == 0
        await other.finish(2)

    asyncio.run(whole())


def test_in_the_background(caplog: pytest.LogCaptureFixture) -> None:
    async def whole() -> None:
        clock = Clock()
        ledger = Ledger(clock)
        one, other = (Front(ledger, clock, entry("alice", running=1)) for _ in range(2))
        broken = False
        calls = 0

        async def exchange(ingress_id: str, report: Report) -> OtherReports:
            nonlocal calls
            calls += 1
            if broken:
                raise ConnectionError("nobody is there")
            return ledger.exchange(ingress_id, report)

        loops = [
            asyncio.create_task(front.quota.keep_in_step(exchange, 0.005)) for front in (one, other)
        ]

        async def exchanged() -> None:
            until = calls + 6
            while calls < until:
                await asyncio.sleep(0.005)

        await one.ask(1)
        await exchanged()
        await other.ask(1)
        await exchanged()
        assert (one.running, other.running) == (1, 0)
        await one.finish(1)
        await exchanged()
        assert other.running == 1
        broken = True
        await one.ask(1)
        await exchanged()
        assert one.running == 0
        clock.now += SILENT_S + 1
        await exchanged()
        assert one.running == 1
        broken = False
        await exchanged()
        warnings = [record for record in caplog.records if record.name == "ray.serve.tcd.keys"]
        assert len(warnings) == 2  # one of each, however long it lasts
        for front in (one, other):
            await front.finish(1)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)

    asyncio.run(whole())


def test_the_ledger_tells_of_others_alone() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    said = {"alice": KeyReport(KeyTotals(answered=1), running=2)}
    assert ledger.exchange("one", said) == OtherReports()
    assert ledger.exchange("two", {}) == OtherReports(present={"one": said})
    assert ledger.exchange("one", said) == OtherReports(present={"two": {}})
