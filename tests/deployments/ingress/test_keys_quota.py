"""Limits of keys: what is taken comes back on every path, and nobody has more than its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from ray.serve.exceptions import RayServeException

from configs.app import ServiceArgs
from deployments.contracts.errors import (
    DeadlineExceeded,
    EngineFault,
    Forbidden,
    GenerationFailed,
    InvalidRequest,
    NotReady,
    QueueFull,
    RateLimited,
)
from deployments.contracts.jobs import (
    Caller,
    FinishedImage,
    ImageJob,
    ImageRequest,
    Progress,
    VideoRequest,
)
from deployments.contracts.refusal import Refusal
from deployments.contracts.usage import KeyUsage
from deployments.contracts.work import work_of
from deployments.ingress.keys.quota import Quota
from tests.deployments.ingress.keyed import LATENT, Clock, Keys, Replica, entry, service

ALICE, BOB = Caller("alice"), Caller("bob", 2.5)
BALL = ImageRequest("a red ball")
WORK = 4 * LATENT  # of one image in the model's default steps


async def settled() -> None:
    """Everything that can go on has gone on."""
    for _ in range(50):
        await asyncio.sleep(0)


@asynccontextmanager
async def asked(
    *calls: Awaitable[object],
) -> AsyncIterator[list["asyncio.Task[object]"]]:
    """The calls as tasks that have gone as far as they can."""
    tasks = [asyncio.create_task(_awaited(call)) for call in calls]
    await settled()
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _awaited(call: Awaitable[object]) -> object:
    return await call


def at_rest(quota: Quota) -> bool:
    return all((u.running, u.waiting) == (0, 0) for u in quota.usage())


def ended(usage: KeyUsage) -> tuple[int, int, int, int]:
    requests = usage.requests
    return requests.answered, requests.refused, requests.failed, requests.cancelled


def job(**fields: object) -> ImageJob:
    return replace(ImageJob("id", "a", (1,), 64, 64), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asks", "work"),
    [
        (job(), 4 * 64),
        (job(seeds=(1, 2, 3)), 3 * 4 * 64),
        (job(num_inference_steps=50), 50 * 64),
        (job(guidance_scale=1.0), 4 * 64),
        (job(guidance_scale=1.5), 2 * 4 * 64),
        (job(width=1024, height=512), 4 * 128 * 64),
        (job(num_frames=16), 16 * 4 * 64),
        (job(image=0, num_inference_steps=10, strength=0.5), 5 * 64),
        (job(strength=0.5), 4 * 64),
    ],
)
def test_work(asks: ImageJob, work: int) -> None:
    assert work_of(asks) == work


def test_the_job_is_done_for_its_caller() -> None:
    async def run() -> None:
        replica = Replica()
        replica.go.set()
        served = service(replica, Quota(Keys(entry("bob", weight=2.5))))
        await served.generate(BALL, BOB)
        await served.generate(BALL)
        await served.animate(VideoRequest("a", model="sd15"), lambda _: None, BOB)
        async for _ in served.stream(BALL, Caller("someone else's user")):
            pass
        assert [job.caller for job in replica.jobs] == [
            BOB,
            Caller(),
            BOB,
            Caller("someone else's user"),
        ]

    asyncio.run(run())


def test_running_and_waiting() -> None:
    async def run() -> None:
        replica, quota = Replica(), Quota(Keys(entry("alice", running=2, waiting=2), entry("bob")))
        served = service(replica, quota)
        async with asked(*(served.generate(BALL, ALICE) for _ in range(4))) as tasks:
            usage = quota.usage_of("alice")
            assert (usage.running, usage.waiting, len(replica.jobs)) == (2, 2, 2)
            with pytest.raises(RateLimited, match="2 images in the service and 2 waiting") as full:
                await served.generate(BALL, ALICE)
            assert 100 <= full.value.retry_after_ms <= 60_000
            async with asked(*(served.generate(BALL, BOB) for _ in range(20))):
                assert len(replica.jobs) == 22  # no limit, and no part in those of others
                replica.go.set()
                await asyncio.gather(*tasks)
        assert at_rest(quota)
        assert ended(quota.usage_of("alice")) == (4, 1, 0, 0)
        assert quota.usage_of("alice").images == 4

    asyncio.run(run())


def test_those_who_wait_go_in_their_order() -> None:
    async def run() -> None:
        replica, quota = Replica(), Quota(Keys(entry("alice", running=2)))
        served = service(replica, quota)
        requests = [replace(BALL, n=n, seed=seed) for seed, n in enumerate((2, 1, 2, 1, 1))]
        async with asked(*(served.generate(r, ALICE) for r in requests)) as tasks:
            replica.go.set()
            await asyncio.gather(*tasks)
        # The larger third is not passed by the smaller ones behind it.
        assert [job.seeds[0] for job in replica.jobs] == [0, 1, 2, 3, 4]
        assert at_rest(quota)

    asyncio.run(run())


def test_more_images_than_the_key_may_ever_have() -> None:
    async def run() -> None:
        replica, quota = Replica(), Quota(Keys(entry("alice", running=2)))
        with pytest.raises(Forbidden, match="n is 3; key 'alice' may have 2 images at a time"):
            await service(replica, quota).generate(replace(BALL, n=3), ALICE)
        assert not replica.jobs
        assert at_rest(quota)

    asyncio.run(run())


def test_models_and_priorities() -> None:
    async def run() -> None:
        replica = Replica()
        replica.go.set()
        quota = Quota(Keys(entry("alice", models=("sd15",), max_priority=0), entry("bob")))
        served = service(replica, quota)
        for wrong in ("sdxl", "no-such-model"):
            with pytest.raises(Forbidden, match=f"{wrong!r}; it may ask: sd15"):
                await served.generate(replace(BALL, model=wrong), ALICE)
            with pytest.raises(Forbidden, match=f"{wrong!r}; it may ask: sd15"):
                await served.check_job(VideoRequest("a", model=wrong), ALICE)
        with pytest.raises(Forbidden, match="priority is 1; 0 at most"):
            await served.generate(replace(BALL, priority=1), ALICE)
        await served.generate(replace(BALL, priority=0), ALICE)
        await served.generate(replace(BALL, model="sdxl", priority=10), BOB)
        assert len(replica.jobs) == 2
        # Nothing is named, and there is no default: the only model there is counts.
        only = service(replica, quota, ServiceArgs(), names=("sdxl",))
        with pytest.raises(Forbidden, match="may not ask model 'sdxl'"):
            await only.generate(BALL, ALICE)
        assert ended(quota.usage_of("alice")) == (1, 4, 0, 0)

    asyncio.run(run())


def test_work_per_minute() -> None:
    async def run() -> None:
        replica, clock = Replica(), Clock()
        replica.go.set()
        quota = Quota(Keys(entry("alice", work_per_minute=2 * WORK)), clock)
        served = service(replica, quota)
        await served.generate(BALL, ALICE)
        assert quota.usage_of("alice").work_left == WORK
        await served.generate(replace(BALL, n=3), ALICE)  # taken, though it is more than is left
        with pytest.raises(RateLimited, match=f"its {2 * WORK} UNet pixel-steps") as used_up:
            await served.generate(BALL, ALICE)
        wait_ms = used_up.value.retry_after_ms
        assert wait_ms == 60_000  # what was taken too much is a whole minute's
        clock.now += wait_ms / 1000 - 0.01
        with pytest.raises(RateLimited):
            await served.generate(BALL, ALICE)
        clock.now += 0.02
        await served.generate(BALL, ALICE)
        clock.now += 3600
        assert quota.usage_of("alice").work_left == 2 * WORK  # a minute's, not an hour's
        assert quota.usage_of("alice").work == 5 * WORK
        assert ended(quota.usage_of("alice")) == (3, 2, 0, 0)

    asyncio.run(run())


def test_work_that_is_used_up_while_a_request_is_made_ready() -> None:
    async def run() -> None:
        replica = Replica()
        quota = Quota(Keys(entry("alice", work_per_minute=WORK)), Clock())
        served = service(replica, quota)
        calls = (served.generate(replace(BALL, n=2), ALICE) for _ in range(10))
        async with asked(*calls) as tasks:
            assert len(replica.jobs) == 1
            replica.go.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, RateLimited) for result in results) == 9
        assert at_rest(quota)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "raised", "outcome", "work"),
    [
        (Refusal(InvalidRequest("no")), InvalidRequest, (0, 1, 0, 0), 0),
        (Refusal(QueueFull("full", 5)), QueueFull, (0, 1, 0, 0), 0),
        (Refusal(EngineFault("broke")), EngineFault, (0, 0, 1, 0), 0),
        (Refusal(GenerationFailed("no numbers")), GenerationFailed, (0, 0, 1, 0), WORK),
        (Refusal(DeadlineExceeded("late")), DeadlineExceeded, (0, 0, 1, 0), WORK),
        (RuntimeError("a bug"), RuntimeError, (0, 0, 1, 0), WORK),
    ],
)
def test_a_request_that_ends_in_an_error_gives_back_what_it_has(
    error: Refusal | Exception,
    raised: type[Exception],
    outcome: tuple[int, int, int, int],
    work: int,
) -> None:
    async def run() -> None:
        for streamed in (False, True):
            replica = Replica(answers=[error, error])  # some are asked for twice
            replica.go.set()
            quota = Quota(Keys(entry("alice", running=1, work_per_minute=WORK)), Clock())
            served = service(replica, quota)
            events = served.stream(BALL, ALICE)
            with pytest.raises(raised):
                await (anext(events) if streamed else served.generate(BALL, ALICE))
            usage = quota.usage_of("alice")
            assert at_rest(quota)
            assert ended(usage) == outcome
            assert usage.work == work
            assert usage.work_left == WORK - work

    asyncio.run(run())


def test_a_request_that_is_asked_again_is_charged_once() -> None:
    async def run() -> None:
        replica = Replica(answers=[RayServeException("the replica died")])
        replica.go.set()
        quota = Quota(Keys(entry("alice", running=1, work_per_minute=10 * WORK)), Clock())
        await service(replica, quota).generate(BALL, ALICE)
        assert len(replica.jobs) == 2
        usage = quota.usage_of("alice")
        assert (usage.work, usage.work_left, usage.images) == (WORK, 9 * WORK, 1)
        assert at_rest(quota)

        replica.answers = [RayServeException("it died"), RayServeException("and again")]
        with pytest.raises(NotReady):
            await service(replica, quota).generate(BALL, ALICE)
        assert quota.usage_of("alice").work_left == 9 * WORK
        assert at_rest(quota)

    asyncio.run(run())


def test_a_request_that_is_cancelled_gives_back_its_place_but_not_its_work() -> None:
    async def run() -> None:
        replica = Replica()
        quota = Quota(Keys(entry("alice", running=1, work_per_minute=10 * WORK)), Clock())
        served = service(replica, quota)
        async with asked(*(served.generate(BALL, ALICE) for _ in range(3))) as tasks:
            tasks[1].cancel()  # it waits
            await settled()
            assert (quota.usage_of("alice").running, quota.usage_of("alice").waiting) == (1, 1)
            tasks[0].cancel()  # it runs: the third takes its place
            await settled()
            assert (quota.usage_of("alice").running, quota.usage_of("alice").waiting) == (1, 0)
            assert len(replica.jobs) == 2
        assert at_rest(quota)
        usage = quota.usage_of("alice")
        assert ended(usage) == (0, 0, 0, 3)
        assert usage.work == 2 * WORK  # or a flood that is cancelled would cost nothing

    asyncio.run(run())


def test_a_place_given_in_the_moment_of_the_cancellation_is_not_lost() -> None:
    async def run() -> None:
        quota = Quota(Keys(entry("alice", running=1)))

        async def hold() -> None:
            with quota.lease(ALICE, 1) as lease:
                await lease.turn()
                await asyncio.sleep(3600)

        async with asked(hold(), hold()) as (first, second):
            first.cancel()
            await asyncio.sleep(0)  # the first has ended and given its place to the second ...
            second.cancel()  # ... which has not woken yet
            await settled()
        assert at_rest(quota)

    asyncio.run(run())


def test_waiting_counts_for_the_requests_own_time() -> None:
    async def run() -> None:
        replica, quota = Replica(), Quota(Keys(entry("alice", running=1)))
        served = service(replica, quota)
        async with asked(served.generate(BALL, ALICE)):
            with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
                await served.generate(replace(BALL, timeout_s=0.05), ALICE)
            with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
                await anext(served.stream(replace(BALL, timeout_s=0.05), ALICE))
            video = VideoRequest("a", model="sd15", timeout_s=0.05)
            with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
                await served.animate(video, lambda _: None, ALICE)
            assert len(replica.jobs) == 1
        assert at_rest(quota)

    asyncio.run(run())


def test_a_stream_that_is_left_early() -> None:
    async def run() -> None:
        replica, quota = Replica(), Quota(Keys(entry("alice", running=1)))
        events = service(replica, quota).stream(BALL, ALICE)
        assert isinstance(await anext(events), Progress)
        assert quota.usage_of("alice").running == 1
        await events.aclose()
        assert at_rest(quota)
        assert ended(quota.usage_of("alice")) == (0, 0, 0, 1)

    asyncio.run(run())


def test_a_stream_to_its_end() -> None:
    async def run() -> None:
        replica, quota = Replica(), Quota(Keys(entry("alice", running=3)))
        replica.go.set()
        events = service(replica, quota).stream(replace(BALL, n=3), ALICE)
        images = [event async for event in events if isinstance(event, FinishedImage)]
        assert len(images) == 3
        assert at_rest(quota)
        usage = quota.usage_of("alice")
        assert (ended(usage), usage.images, usage.work) == ((1, 0, 0, 0), 3, 3 * WORK)

    asyncio.run(run())


def test_videos() -> None:
    async def run() -> None:
        replica = Replica()
        quota = Quota(Keys(entry("alice", running=1, waiting=1, work_per_minute=10**6)), Clock())
        served = service(replica, quota)
        video = VideoRequest("a", model="sd15", num_frames=8)

        def make() -> Awaitable[object]:
            return served.animate(video, lambda _: None, ALICE)

        async with asked(make(), make()) as tasks:
            assert len(replica.jobs) == 1
            await served.check_job(video, ALICE)  # it may wait as a job
            replica.go.set()
            await asyncio.gather(*tasks)
        assert at_rest(quota)
        usage = quota.usage_of("alice")
        assert (usage.images, usage.work) == (2, 2 * 8 * WORK)

    asyncio.run(run())


def test_a_video_that_waits_for_the_models_queue_is_charged_once() -> None:
    async def run() -> None:
        replica = Replica(answers=[Refusal(QueueFull("full", 1)) for _ in range(3)])
        replica.go.set()
        quota = Quota(Keys(entry("alice", work_per_minute=10**6)), Clock())
        video = VideoRequest("a", model="sd15", num_frames=8)
        await service(replica, quota).animate(video, lambda _: None, ALICE)
        assert len(replica.jobs) == 4
        assert quota.usage_of("alice").work == 8 * WORK

    asyncio.run(run())


def test_a_video_waits_for_the_work_of_its_key() -> None:
    async def run() -> None:
        replica, clock = Replica(), Clock()
        replica.go.set()
        quota = Quota(Keys(entry("alice", work_per_minute=8 * WORK)), clock)
        served = service(replica, quota)
        await served.generate(replace(BALL, n=8), ALICE)
        video = VideoRequest("a", model="sd15", num_frames=8)
        await served.check_job(video, ALICE)  # it may wait as a job
        made = asyncio.create_task(served.animate(video, lambda _: None, ALICE))
        await settled()
        assert not made.done()
        clock.now += 1.0
        await made

    asyncio.run(run())


def test_limits_change_while_requests_wait() -> None:
    async def run() -> None:
        replica, keys = Replica(), Keys(entry("alice", running=2))
        quota = Quota(keys)
        served = service(replica, quota)
        two = replace(BALL, n=2)
        async with asked(*(served.generate(two, ALICE) for _ in range(3))) as tasks:
            keys._put_in_force([entry("alice", running=1)])
            replica.go.set()
            await asyncio.gather(*tasks)  # one at a time: nobody waits for ever
        replica.go.clear()
        async with asked(*(served.generate(BALL, ALICE) for _ in range(3))) as tasks:
            assert len(replica.jobs) == 4
            keys._put_in_force([entry("alice")])
            tasks[0].cancel()
            await settled()
            assert len(replica.jobs) == 6
        keys._put_in_force([])
        assert at_rest(quota)
        assert ended(quota.usage_of("alice")) == (3, 0, 0, 3)  # what is gone stays counted

    asyncio.run(run())


def test_a_crowd() -> None:
    """1,000 requests of ten keys, of which every third is cancelled at some moment."""

    async def run() -> None:
        names = [f"key{i}" for i in range(10)]
        quota = Quota(Keys(*(entry(n, running=1 + i, waiting=50) for i, n in enumerate(names))))
        most = dict.fromkeys(names, 0)
        now = dict.fromkeys(names, 0)

        async def one(number: int) -> None:
            name = names[number % 10]
            with quota.lease(Caller(name), 1) as lease:
                await lease.turn()
                now[name] += 1
                most[name] = max(most[name], now[name])
                try:
                    await asyncio.sleep(0.0005 * (number % 7))
                finally:
                    now[name] -= 1

        tasks = [asyncio.create_task(one(number)) for number in range(1000)]
        for number in range(0, 1000, 3):
            if number % 30 == 0:
                await asyncio.sleep(0.001)
            tasks[number].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert at_rest(quota)
        for index, name in enumerate(names):
            usage = quota.usage_of(name)
            assert most[name] == 1 + index
            assert sum(ended(usage)) <= 100
            assert usage.requests.failed == 0
        refused = sum(isinstance(result, RateLimited) for result in results)
        assert refused == sum(quota.usage_of(name).requests.refused for name in names) > 0

    asyncio.run(run())


def test_names_without_a_key_are_counted_together() -> None:
    async def run() -> None:
        replica = Replica()
        replica.go.set()
        quota = Quota(Keys(entry("alice", running=1)))
        served = service(replica, quota)
        for number in range(50):
            await served.generate(BALL, Caller(f"user-{number}"))
        assert [usage.key for usage in quota.usage()] == ["alice", ""]
        assert ended(quota.usage_of("")) == (50, 0, 0, 0)

    asyncio.run(run())
