"""What a desk promises to whoever hands jobs in, waits for them, and asks for many at once."""

import asyncio
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest

from deployments.contracts.batches import BatchBody
from deployments.contracts.errors import InvalidRequest, NotFound
from deployments.contracts.jobs import Caller, ImageRequest, VideoRequest
from deployments.ingress.http.app import make_app
from deployments.ingress.jobs.asked import Asked, ImageAsked, VideoAsked
from deployments.ingress.jobs.batches import FAULTY
from deployments.ingress.jobs.desk import THREADS, derived_id
from deployments.jobs.record import JobError, JobRecord
from tests.deployments.ingress.jobs.test_working import ALICE, ARGS, BALL, House, run

BLUE = ImageAsked(request=ImageRequest("a blue ball"))
VIDEO = VideoAsked(request=VideoRequest("a", num_frames=2))
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {}}


class Watched(list[JobRecord]):
    """Jobs that a look shows; `readers`: the threads that went through them."""

    def __init__(self, jobs: Iterable[JobRecord]) -> None:
        super().__init__(jobs)
        self.readers = list[int]()

    def __iter__(self) -> Iterator[JobRecord]:
        self.readers.append(threading.get_ident())
        return super().__iter__()


def failed(house: House, code: str) -> JobRecord:
    """Of the one job that waits."""
    taken = house.desk._queue.take()
    assert taken is not None
    return house.desk._queue.fail(taken, JobError(code=code, message="x"))


@pytest.mark.parametrize("asked", [BALL, VIDEO])
def test_a_failure_that_passes_is_made_anew(tmp_path: Path, asked: Asked) -> None:
    async def live(house: House) -> None:
        first = await house.desk.submit(asked, "key", ALICE)
        for code in ("engine_fault", "internal_error"):
            failed(house, code)
            again = await house.desk.submit(asked, "key", ALICE)
            assert (again.id, again.status) == (first.id, "queued")
            assert again.folder != first.folder
            first = again
        kept = failed(house, "generation_failed")
        assert await house.desk.submit(asked, "key", ALICE) == kept

    run(House(tmp_path), live)


def test_so_is_that_of_a_batch(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        text = json.dumps(LINE).encode()
        file = await house.desk.keep_file(text, "lines.jsonl", "batch", ALICE)
        body = BatchBody(
            input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h"
        )
        first = await house.desk.begin_batch(body, "key", ALICE, "")
        line = await house.desk.submit_line(BALL, "image_line", first)
        failed(house, "storage_unavailable")
        again = await house.desk.begin_batch(body, "key", ALICE, "")
        assert again.status == "queued"
        assert await house.desk.with_lines(again) == (again, {})  # they may be of another body
        with pytest.raises(NotFound):
            await house.desk.get(line.id)
        kept = failed(house, FAULTY)
        assert await house.desk.begin_batch(body, "key", ALICE, "") == kept

    run(House(tmp_path), live)


def test_a_batch_that_has_ended_is_deleted_with_its_lines(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        file = await house.desk.keep_file(json.dumps(LINE).encode(), "a.jsonl", "batch", ALICE)
        body = BatchBody(
            input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h"
        )
        batch, other = [await house.desk.begin_batch(body, None, ALICE, "") for _ in range(2)]
        line = await house.desk.submit_line(BALL, "image_line", batch)
        others = await house.desk.submit_line(BALL, "image_others", other)
        with pytest.raises(InvalidRequest, match="is queued; cancel it"):
            await house.desk.delete_batch(batch.id, "alice")
        failed(house, FAULTY)
        with pytest.raises(NotFound):
            await house.desk.delete_batch(batch.id, "bob")
        odd = await house.desk.submit_line(BALL, "image_odd", batch)
        stored = house.objects.read("jobs/image_odd")
        assert stored is not None
        house.objects.replace("jobs/image_odd", b"{", stored.tag)
        await house.desk.delete_batch(batch.id, "alice")
        assert list(house.objects.listed(odd.folder)) == []
        with pytest.raises(NotFound):
            await house.desk.get(batch.id, None, "batch")
        with pytest.raises(NotFound):
            await house.desk.get(line.id)
        assert not list(house.objects.listed(batch.folder))
        assert await house.desk.get(others.id) == others
        assert await house.desk.get(file.id, "alice", "file") == file

    run(House(tmp_path), live)


def test_who_waits_is_not_given_the_answer_of_another(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        house.replica.go.set()
        mine = await house.desk.submit(BALL, "key", ALICE)
        await house.desk.forget(mine)
        other = await house.desk.submit(BLUE, "key", ALICE)
        assert other.id == mine.id
        house.hire()
        await house.until(other, "completed")
        with pytest.raises(NotFound, match="does not exist any more"):
            await house.desk.ended(mine, 5)
        with pytest.raises(NotFound):
            assert [now async for now in house.desk.followed(mine)] == [mine]

    run(House(tmp_path), live)


def test_a_crowd_that_waits_delays_nobody_who_hands_in(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        queue, get = house.desk._queue, house.desk._queue.get
        stands = threading.Event()
        crowd = [await house.desk.submit(BALL, caller=Caller(f"{n}")) for n in range(2 * THREADS)]
        names = {job.id for job in crowd}

        def slow(job_id: str) -> JobRecord:
            if job_id in names:
                stands.wait(20)
            return get(job_id)

        queue.get = slow  # type: ignore[method-assign]
        waiting = [asyncio.create_task(house.desk.ended(job, 20)) for job in crowd]
        try:
            await asyncio.sleep(0.1)
            async with asyncio.timeout(30):
                await house.desk.submit(BALL, "key", ALICE)
        finally:
            stands.set()
            for one in waiting:
                one.cancel()

    many = ARGS.model_copy(update={"jobs": ARGS.jobs.model_copy(update={"max_images": 1000})})
    run(House(tmp_path, many), live)


def test_a_page_of_batches_has_the_lines_of_each(tmp_path: Path) -> None:
    """Found beside the event loop, once for all of them."""

    async def live(house: House) -> None:
        file = await house.desk.keep_file(json.dumps(LINE).encode(), "a.jsonl", "batch", ALICE)
        body = BatchBody(
            input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h"
        )
        batches = [await house.desk.begin_batch(body, None, ALICE, "") for _ in range(2)]
        lines = [
            await house.desk.submit_line(BALL, derived_id("image", f"{batch.id} {n}"), batch)
            for batch in batches
            for n in range(3)
        ]
        await house.desk.submit(BALL, caller=ALICE)
        every = Watched(house.desk._queue.jobs())
        house.desk._queue.jobs = lambda *_: every  # type: ignore[method-assign]
        found = await house.desk.page(None, 10, True, "alice", "batch", lambda _: True)
        assert [record.id for record in found.jobs] == [batch.id for batch in batches[::-1]]
        assert list(found.lines[batches[0].id]) == lines[:3]
        assert list(found.lines[batches[1].id]) == lines[3:]
        assert len(every.readers) == 2
        now, its = await house.desk.with_lines(batches[0])
        assert now == batches[0]
        assert list(its.values()) == lines[:3]
        assert threading.get_ident() not in every.readers

    run(House(tmp_path), live)


def test_places_in_the_queue_are_counted_beside_the_event_loop(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        jobs = [await house.desk.submit(asked, caller=ALICE) for asked in (BALL, BLUE, VIDEO)]
        every = Watched(house.desk._queue.jobs())
        house.desk._queue.jobs = lambda *_: every  # type: ignore[method-assign]
        house.desk._queue.open_jobs = lambda: every  # type: ignore[method-assign]
        transport = httpx.ASGITransport(make_app(house.service, house.desk, house.args))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            page = (await client.get("/v1/jobs")).json()
            assert [card["queue_position"] for card in page["data"]] == [2, 1, 0]
            for place, job in enumerate(jobs):
                card = (await client.get(f"/v1/jobs/{job.id}")).json()
                assert card["queue_position"] == place
            asked = {"prompt": "a", "async": True}
            answer = await client.post("/v1/images/generations", json=asked)
            assert answer.status_code == 202, answer.text
        assert len(every.readers) >= 5
        assert threading.get_ident() not in every.readers

    run(House(tmp_path), live)
