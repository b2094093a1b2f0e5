"""Workers over one folder, with a model that does what it is told to."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ray.exceptions import ActorDiedError

from configs.app import ServiceArgs
from configs.jobs import JobsArgs
from deployments.contracts.errors import (
    Conflict,
    GenerationFailed,
    NotFound,
    QueueFull,
    RateLimited,
    StorageUnavailable,
)
from deployments.contracts.jobs import BACKGROUND, Caller, ImageRequest, VideoRequest
from deployments.contracts.refusal import Refusal
from deployments.ingress.jobs import choosing, making, working
from deployments.ingress.jobs.asked import ImageAsked, VideoAsked
from deployments.ingress.jobs.desk import Desk
from deployments.ingress.jobs.working import Working
from deployments.ingress.keys.quota import Quota
from deployments.ingress.request import deaths
from deployments.jobs.folder import FolderObjects
from deployments.jobs.objects import Listed, Stored, Written
from deployments.jobs.queue import JobQueue
from deployments.jobs.record import JobRecord
from tests.deployments.ingress.keyed import Keys, Replica, entry, service
from tests.deployments.ingress.local_jobs import local_worker

ALICE = Caller("alice")
PROMPT = "a dragon asleep"
LEASE_S = 2.0
ARGS = ServiceArgs(
    default_model="sd15", jobs=JobsArgs(lease_s=LEASE_S, poll_s=0.05, at_once=4, max_images=20)
)
BALL = ImageAsked(request=ImageRequest("a red ball"))


class House:
    """A desk and workers over one folder."""

    def __init__(self, folder: Path, args: ServiceArgs = ARGS, **limits: Any) -> None:
        self.replica = Replica()
        self.args = args
        self.objects = Flaky(folder)
        self.keys = Keys(entry("alice", **limits))
        self.service = service(self.replica, Quota(self.keys), args)
        self.desk = Desk(args, self.service, self.keys, self.objects)
        self.workers: list[tuple[Working, asyncio.Task[None]]] = []

    def hire(self) -> Working:
        """One worker more."""
        working = local_worker(self.service, self.args, self.objects)
        self.workers.append((working, asyncio.create_task(working.run())))
        return working

    async def kill(self, working: Working) -> None:
        """It does nothing any more, and says nothing."""
        tasks = [task for one, task in self.workers if one is working]
        works, working._works = dict(working._works), {}
        tasks += [work.task for work in works.values() if work.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while working._io.unfinished or working._leases.unfinished:  # also what was being written
            await asyncio.sleep(0.01)

    async def until(self, job: JobRecord, status: str, within_s: float = 20) -> JobRecord:
        """A job, as soon as it stands so."""
        end = time.monotonic() + within_s
        while (record := await self.desk.get(job.id, None, job.kind)).status != status:
            assert time.monotonic() < end, record
            await asyncio.sleep(0.02)
        return record


class Flaky(FolderObjects):
    """A folder that is away while it is told to be."""

    away = False

    def read(self, name: str) -> Stored | None:
        self._there()
        return super().read(name)

    def create(self, name: str, content: bytes) -> Written | None:
        self._there()
        return super().create(name, content)

    def replace(self, name: str, content: bytes, tag: str) -> Written | None:
        self._there()
        return super().replace(name, content, tag)

    def listed(self, prefix: str) -> Iterator[Listed]:
        self._there()
        return super().listed(prefix)

    def _there(self) -> None:
        if self.away:
            raise StorageUnavailable("away")


def run(house: House, live: Callable[[House], Awaitable[None]]) -> None:
    async def lived() -> None:
        try:
            await live(house)
        finally:
            for _, task in house.workers:
                task.cancel()
            await asyncio.gather(*(t for _, t in house.workers), return_exceptions=True)

    asyncio.run(lived())


def test_a_job_whose_worker_dies_is_done_by_another(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        first = house.hire()
        job = await house.desk.submit(BALL, caller=ALICE)
        await house.until(job, "in_progress")
        seed = house_seed(await house.desk.get(job.id))
        await house.kill(first)
        house.replica.go.set()
        house.hire()
        done = await house.until(job, "completed")
        assert done.attempts == 2
        assert len(done.results) == 1
        data, kind = await house.desk.file(done, "0")
        assert (data[:4], kind) == (b"\x89PNG", "image/png")
        assert {asked.seeds for asked in house.replica.jobs} == {(seed,)}
        names = [file.name for file in house.objects.listed(done.folder)]
        assert names == [done.folder + done.results[0].name]

    run(House(tmp_path), live)


async def as_if_taken_twice(house: House, job: JobRecord) -> None:
    """A job that waits, and that two workers went away over."""
    name = f"open/{job.id}.{job.folder.split('/')[1]}"
    written = None
    while written is None:  # its worker may renew it between
        stored = house.objects.read(name)
        assert stored is not None
        record = JobRecord.model_validate_json(stored.content)
        waits = record.changed(status="queued", lease=None, attempts=2).model_dump_json()
        written = house.objects.replace(name, waits.encode(), stored.tag)


def house_seed(record: JobRecord) -> int:
    """That was settled when it was accepted."""
    asked: Any = record.request["asked"]
    seed = asked["request"]["seed"]
    assert isinstance(seed, int)
    return seed


def test_a_worker_that_is_told_to_go_gives_back(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        first = house.hire()
        job = await house.desk.submit(BALL, caller=ALICE)
        await house.until(job, "in_progress")
        await first.stop()
        assert (await house.desk.get(job.id)).status == "queued"
        house.replica.go.set()
        house.hire()
        assert (await house.until(job, "completed")).attempts == 1

    run(House(tmp_path), live)


def test_a_worker_that_is_told_to_go_may_finish(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        first = house.hire()
        job = await house.desk.submit(BALL, caller=ALICE)
        await house.until(job, "in_progress")
        asyncio.get_running_loop().call_later(0.2, house.replica.go.set)
        await first.stop(patience_s=10)
        assert (await house.desk.get(job.id)).status == "completed"

    run(House(tmp_path), live)


def test_a_worker_goes_though_the_storage_went_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are told to go at the same time where the storage is a deployment."""
    monkeypatch.setattr(working, "GOODBYE_S", 0.3)
    silent, looked, over = (threading.Event() for _ in range(3))

    class Gone(Flaky):
        def listed(self, prefix: str) -> Iterator[Listed]:
            if silent.is_set():
                looked.set()
                over.wait(20)
            return super().listed(prefix)

    async def live(house: House) -> None:
        house.objects = Gone(tmp_path)
        worker = house.hire()
        await asyncio.sleep(0.2)
        silent.set()
        assert await asyncio.to_thread(looked.wait, 10)
        try:
            async with asyncio.timeout(10):
                await worker.stop()
        finally:
            over.set()

    run(House(tmp_path), live)


def test_lines_of_batches_start_no_workers(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        worker = house.hire()
        behind = ImageAsked(request=ImageRequest("a red ball", priority=BACKGROUND))
        lines = [await house.desk.submit(behind, caller=ALICE) for _ in range(6)]
        job = await house.desk.submit(BALL, caller=ALICE)
        for one in (*lines[:4], job):
            await house.until(one, "in_progress")
        async with worker._turning:  # the look that took the last of them is over
            assert worker.open == 1
        house.replica.go.set()
        for one in (*lines, job):
            await house.until(one, "completed")

    run(House(tmp_path), live)


def test_who_has_a_last_chance_has_it_alone(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        suspect = await house.desk.submit(BALL, caller=ALICE)
        clock = [0.0]
        queue = JobQueue(house.objects, LEASE_S, clock=lambda: clock[0])
        for attempt in (1, 2):
            while (taken := queue.take()) is None:
                clock[0] += LEASE_S / 6
            assert taken.attempts == attempt
        house.hire()
        while (await house.desk.get(suspect.id)).attempts < 3:
            await asyncio.sleep(0.05)
        others = [await house.desk.submit(BALL, caller=ALICE) for _ in range(2)]
        await asyncio.sleep(0.5)
        standing = [(await house.desk.get(job.id)).status for job in (suspect, *others)]
        assert standing == ["in_progress", "queued", "queued"]
        house.replica.go.set()
        assert (await house.until(suspect, "completed")).attempts == 3
        for job in others:
            await house.until(job, "completed")

    run(House(tmp_path), live)


@pytest.mark.parametrize("patience_s", [0.5, 60.0])
def test_who_is_busy_leaves_a_last_chance_to_others_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    monkeypatch.setattr(choosing, "LAST_CHANCE_S", (patience_s, patience_s))

    async def live(house: House) -> None:
        busy = house.hire()
        first = await house.desk.submit(BALL, caller=ALICE)
        await house.until(first, "in_progress")
        suspect = await house.desk.submit(BALL, caller=ALICE)
        await house.until(suspect, "in_progress")
        await as_if_taken_twice(house, suspect)
        await house.until(suspect, "queued")
        drains = patience_s < 1
        await asyncio.sleep(1.0)
        async with asyncio.timeout(20):  # it may have seen it late
            while drains and not busy._choosing._is_kept_free():
                await asyncio.sleep(0.02)
        other = await house.desk.submit(BALL, caller=ALICE)
        if drains:
            await asyncio.sleep(0.5)
        else:
            await house.until(other, "in_progress")
        expected = ["in_progress", "queued", "queued" if drains else "in_progress"]
        jobs = (first, suspect, other)
        assert [(await house.desk.get(job.id)).status for job in jobs] == expected
        house.hire()  # it is idle
        assert (await house.until(suspect, "in_progress")).attempts == 3
        house.replica.go.set()
        for job in jobs:
            await house.until(job, "completed")

    run(House(tmp_path), live)


def test_a_last_chance_comes_however_much_is_ahead_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "LAST_CHANCE_S", (0.3, 0.3))

    async def live(house: House) -> None:
        suspect = await house.desk.submit(BALL, caller=ALICE)
        await as_if_taken_twice(house, suspect)
        house.replica.go.set()
        urgent = ImageAsked(request=ImageRequest("a red ball", priority=10))

        async def crowd() -> None:
            while True:
                with suppress(QueueFull):
                    await house.desk.submit(urgent)
                await asyncio.sleep(0)

        crowds = [asyncio.create_task(crowd()) for _ in range(4)]
        try:
            await asyncio.sleep(0.5)
            house.hire()
            assert (await house.until(suspect, "completed")).attempts == 3
        finally:
            for task in crowds:
                task.cancel()
            await asyncio.gather(*crowds, return_exceptions=True)

    run(House(tmp_path), live)


@pytest.mark.parametrize("failures", [working.WRITES - 1, working.WRITES])
def test_an_answer_is_written_though_that_fails_strangely_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    monkeypatch.setattr(working, "AWAY_S", 0.05)
    complete, failed = JobQueue.complete, list[str]()

    def strange(queue: JobQueue, job: JobRecord, *args: Any) -> JobRecord:
        if len(failed) < failures:
            failed.append(job.id)
            raise RuntimeError("strange")
        return complete(queue, job, *args)

    monkeypatch.setattr(JobQueue, "complete", strange)

    async def live(house: House) -> None:
        house.replica.go.set()
        house.hire()
        job = await house.desk.submit(BALL, caller=ALICE)
        done = await house.until(job, "completed")
        assert done.attempts == (1 if failures < working.WRITES else 2)
        assert len(house.replica.jobs) == done.attempts

    run(House(tmp_path), live)


def test_cancelling_reaches_the_device_and_deleting_leaves_nothing(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        working = house.hire()
        jobs = [await house.desk.submit(BALL, caller=ALICE) for _ in range(2)]
        for job in jobs:
            await house.until(job, "in_progress")
        assert (await house.desk.cancel(jobs[0].id)).status == "cancelled"
        await house.desk.delete(jobs[1].id)
        end = time.monotonic() + 30
        while working._works:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
        house.replica.go.set()
        await asyncio.sleep(0.2)
        assert (await house.desk.get(jobs[0].id)).status == "cancelled"
        with pytest.raises(NotFound):
            await house.desk.get(jobs[1].id)
        assert list(house.objects.listed(jobs[1].folder)) == []

    run(House(tmp_path), live)


def test_the_time_of_a_job_begins_when_the_device_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deaths, "FULL_PAUSE_S", (0.2, 0.2))

    async def live(house: House) -> None:
        house.replica.answers = [Refusal(QueueFull("full", 1)) for _ in range(4)]
        house.hire()
        hurried = ImageAsked(request=ImageRequest("a", timeout_s=0.5))
        job = await house.desk.submit(hurried, caller=ALICE)
        failed = await house.until(job, "failed")
        assert failed.error is not None
        assert failed.error.code == "deadline_exceeded"
        assert failed.error.message == "the job was not done within 0.5 s"
        assert failed.started_at is not None
        assert failed.ended_at is not None
        assert failed.ended_at - failed.started_at > 4 * 0.15 + 0.5

    run(House(tmp_path), live)


@pytest.mark.parametrize("video", [False, True])
def test_what_passes_is_asked_again_and_a_failure_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video: bool
) -> None:
    monkeypatch.setattr(making, "PAUSE_S", 0.05)
    asked = VideoAsked(request=VideoRequest("a", num_frames=2)) if video else BALL
    died = ActorDiedError()

    async def live(house: House) -> None:
        house.replica.go.set()
        house.hire()
        house.replica.answers = [died, died, died]  # each is asked twice
        await house.until(await house.desk.submit(asked, caller=ALICE), "completed")
        house.replica.answers = [died] * 6
        failed = await house.until(await house.desk.submit(asked, caller=ALICE), "failed")
        assert failed.error is not None
        assert failed.error.code == "not_ready"
        assert failed.attempts == 1
        house.replica.answers = [Refusal(GenerationFailed("not finite"))]
        failed = await house.until(await house.desk.submit(asked, caller=ALICE), "failed")
        assert failed.error is not None
        assert (failed.error.code, failed.error.message) == ("generation_failed", "not finite")

    run(House(tmp_path), live)


def test_a_storage_that_is_away_for_a_while_costs_time_alone(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        house.hire()
        job = await house.desk.submit(BALL, caller=ALICE)
        await house.until(job, "in_progress")
        waiting = asyncio.create_task(house.desk.ended(job, 30))
        house.objects.away = True
        house.replica.go.set()
        await asyncio.sleep(2 * LEASE_S)
        house.objects.away = False
        done = await waiting
        assert (done.status, done.attempts) == ("completed", 1)

    run(House(tmp_path), live)


def test_a_key_holds_so_many_bytes(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        house.replica.go.set()
        house.hire()
        first = await house.until(await house.desk.submit(BALL, caller=ALICE), "completed")
        assert first.keep_s == 77
        big = first.changed(pictures_size=2**20)
        name = f"open/{first.id}.{first.folder.split('/')[1]}"
        stored = house.objects.read(name)
        assert stored is not None
        house.objects.replace(name, big.model_dump_json().encode(), stored.tag)
        with pytest.raises(RateLimited, match=r"hold 1\.0 MiB of the 1 that it may have"):
            await house.desk.submit(BALL, caller=ALICE)
        assert (await house.desk.submit(BALL)).owner == ""  # of nobody's key
        await house.desk.delete(first.id)
        await house.desk.submit(BALL, caller=ALICE)

    run(House(tmp_path, job_mb=1, keep_s=77.0), live)


def test_so_many_may_be_unfinished(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        jobs = [await house.desk.submit(BALL, caller=ALICE) for _ in range(20)]
        with pytest.raises(QueueFull, match="20 jobs of images are unfinished already"):
            await house.desk.submit(BALL, caller=ALICE)
        places = [await house.desk.position(job) for job in jobs]
        assert places == list(range(20))
        video = VideoAsked(request=VideoRequest("a", num_frames=2))
        await house.desk.submit(video, caller=ALICE)  # they are counted by themselves

    run(House(tmp_path), live)


def test_keys_of_idempotency_are_their_owners(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        first = await house.desk.submit(BALL, "same", ALICE)
        assert (await house.desk.submit(BALL, "same", ALICE)).id == first.id
        assert (await house.desk.submit(BALL, "same", Caller("bob"))).id != first.id
        other = ImageAsked(request=ImageRequest("a blue ball"))
        with pytest.raises(Conflict):
            await house.desk.submit(other, "same", ALICE)
        at_once = await asyncio.gather(
            *(house.desk.submit(other, "fresh", ALICE) for _ in range(5))
        )
        assert len({job.folder for job in at_once}) == 1

    run(House(tmp_path), live)


def test_who_waits_is_told_when_it_is_late_or_gone(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        job = await house.desk.submit(BALL, caller=ALICE)
        with pytest.raises(TimeoutError):
            await house.desk.ended(job, 0.2)
        waiting = asyncio.create_task(house.desk.ended(job, 10))
        await asyncio.sleep(0.1)
        await house.desk.delete(job.id)
        with suppress(NotFound):  # it is seen to be cancelled, or not at all
            assert (await waiting).status == "cancelled"

    run(House(tmp_path), live)


def test_its_renewals_are_no_news(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        job = await house.desk.submit(BALL)
        house.hire()
        running = await house.until(job, "in_progress")
        told: list[JobRecord | None] = []

        async def listens() -> None:
            async for now in house.desk.followed(running):
                told.append(now)

        listening = asyncio.create_task(listens())
        while (await house.desk.get(job.id)).revision < running.revision + 3:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        assert told[0] == running
        assert None in told  # it was looked at meanwhile
        news = [(now.status, now.progress, now.previews) for now in told if now is not None]
        assert len(set(news)) == len(news)
        house.replica.go.set()
        await listening
        assert told[-1] is not None
        assert told[-1].status == "completed"

    run(House(tmp_path), live)


def test_what_is_counted_of_jobs(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        for number in range(2):
            await house.desk.submit(ImageAsked(request=ImageRequest(f"ball {number}")))
        figures = await house.desk.figures()
        assert figures is not None
        assert figures.standing == {("image", "queued"): 2}
        assert 0 <= figures.waiting_s["image"] < 20
        house.objects.away = True
        assert await house.desk.figures() is None

    run(House(tmp_path), live)


def test_a_prompt_in_what_a_worker_fails_with_is_logged_only_if_it_may_be(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    whole: bool,
) -> None:
    def quoting(*_: object) -> NoReturn:
        raise LookupError(f"no token for {PROMPT!r}")

    async def live(house: House) -> None:
        monkeypatch.setattr(house.objects, "listed", quoting)
        house.hire()
        while "a look for jobs failed" not in caplog.text:
            await asyncio.sleep(0.01)
        while "jobs are not swept" not in caplog.text:
            await asyncio.sleep(0.01)

    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    run(House(tmp_path), live)
    assert "in quoting" in caplog.text
    assert (PROMPT in caplog.text) is whole
