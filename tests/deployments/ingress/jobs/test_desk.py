"""What a desk promises to whoever hands jobs in, waits for them, and asks for many at once."""

import asyncio
import json
from pathlib import Path

import pytest

from deployments.contracts.batches import BatchBody
from deployments.contracts.errors import NotFound
from deployments.contracts.jobs import ImageRequest, VideoRequest
from deployments.ingress.jobs.asked import Asked, ImageAsked, VideoAsked
from deployments.ingress.jobs.batches import FAULTY
from deployments.jobs.record import JobError, JobRecord
from tests.deployments.ingress.jobs.test_working import ALICE, BALL, House, run

BLUE = ImageAsked(request=ImageRequest("a blue ball"))
VIDEO = VideoAsked(request=VideoRequest("a", num_frames=2))
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {}}


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
        await house.desk.begin_batch(body, "key", ALICE, "")
        failed(house, "storage_unavailable")
        again = await house.desk.begin_batch(body, "key", ALICE, "")
        assert again.status == "queued"
        kept = failed(house, FAULTY)
        assert await house.desk.begin_batch(body, "key", ALICE, "") == kept

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
