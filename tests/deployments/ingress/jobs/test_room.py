"""How many jobs, and how much of a key's, a service takes."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.contracts.errors import QueueFull, RateLimited
from deployments.contracts.jobs import Caller, ImageRequest
from deployments.ingress.jobs.asked import ImageAsked
from deployments.jobs.record import JobRecord
from tests.deployments.ingress.images import png
from tests.deployments.ingress.jobs.test_working import ALICE, BALL, House, run


def refused(outcomes: list[Any], kind: type[Exception]) -> int:
    assert all(isinstance(one, JobRecord | kind) for one in outcomes), outcomes
    return sum(isinstance(one, kind) for one in outcomes)


def test_many_at_once_find_no_more_room_than_there_is(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        many = [house.desk.submit(BALL, caller=ALICE) for _ in range(40)]
        outcomes = await asyncio.gather(*many, return_exceptions=True)
        assert refused(outcomes, QueueFull) == 20  # of max_images: 20
        assert len(house.desk._queue.open_jobs()) == 20
        bob = await house.desk.submit(
            BALL, caller=Caller("bob")
        )  # those who were refused hold none
        same = [house.desk.submit(BALL, "key", Caller("bob")) for _ in range(15)]
        assert len({job.folder for job in await asyncio.gather(*same)} - {bob.folder}) == 1

    run(House(tmp_path), live)


def test_so_do_the_files_of_a_key(tmp_path: Path) -> None:
    async def live(house: House) -> None:
        many = [house.desk.keep_file(bytes(2**18), "lines.jsonl", "batch", ALICE) for _ in range(8)]
        outcomes = await asyncio.gather(*many, return_exceptions=True)
        assert refused(outcomes, RateLimited) == 4

    run(House(tmp_path, job_mb=1), live)


def test_pictures_of_a_request_count_before_they_are_kept(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    edit = ImageAsked(request=ImageRequest("a", image=png(pixels)))

    async def live(house: House) -> None:
        with pytest.raises(RateLimited, match=r"hold 0\.0 MiB of the 1 .*this would take 1\.2"):
            await house.desk.submit(edit, caller=ALICE)
        assert list(house.objects.listed("")) == []
        await house.desk.submit(edit)  # of nobody's key

    run(House(tmp_path, job_mb=1), live)
