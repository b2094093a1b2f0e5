"""Looks at jobs: shared by those who ask at once, and given up when the storage hangs."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.contracts.errors import NotFound, StorageUnavailable
from deployments.ingress.jobs import looks
from deployments.ingress.jobs.looks import Looks
from deployments.jobs.folder import FolderObjects
from deployments.jobs.objects import Listed, Stored
from deployments.jobs.queue import JobQueue


class Slow(FolderObjects):
    """A folder that answers as soon as it may."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.may_answer = threading.Event()
        self.asked = 0

    def read(self, name: str) -> Stored | None:
        self.asked += 1
        self.may_answer.wait(20)
        return super().read(name)


def test_those_who_ask_for_a_job_at_once_share_a_look(tmp_path: Path) -> None:
    async def live() -> None:
        objects = Slow(tmp_path)
        looking = Looks(JobQueue(objects))
        crowd = [asyncio.create_task(looking.at_one("image_a")) for _ in range(50)]
        await asyncio.sleep(0.1)
        crowd[0].cancel()  # who leaves takes nobody with him
        objects.may_answer.set()
        outcomes = await asyncio.gather(*crowd[1:], return_exceptions=True)
        assert {type(one) for one in outcomes} == {NotFound}
        assert objects.asked == 1
        with pytest.raises(NotFound):  # who comes later sees what is there now
            await looking.at_one("image_a")
        assert objects.asked == 2

    asyncio.run(live())


@pytest.mark.parametrize("fresh_s", [None, 0.0, looks.COUNTED_S])
def test_a_crowd_shares_the_looks_at_the_jobs(tmp_path: Path, fresh_s: float | None) -> None:
    listed, may_answer = list[str](), threading.Event()

    class Listing(FolderObjects):
        def listed(self, prefix: str) -> Iterator[Listed]:
            listed.append(prefix)
            may_answer.wait(20)
            return super().listed(prefix)

    async def live() -> None:
        looking = Looks(JobQueue(Listing(tmp_path)))

        async def one() -> int:
            if fresh_s is None:
                return await looking.at_open(len)
            return await looking.at_all(len, fresh_s)

        first = asyncio.create_task(one())
        while not listed:
            await asyncio.sleep(0.001)
        crowd = [first]
        for _ in range(99):
            crowd.append(asyncio.create_task(one()))
            await asyncio.sleep(0)
        may_answer.set()
        assert await asyncio.gather(*crowd) == [0] * 100
        assert listed.count("open/") == 2  # one under way, and then one for all the others

    asyncio.run(live())


def test_looks_outlive_an_event_loop(tmp_path: Path) -> None:
    looking = Looks(JobQueue(FolderObjects(tmp_path)))
    for _ in range(3):
        assert asyncio.run(looking.at_open(len)) == asyncio.run(looking.at_all(len)) == 0


def test_who_asks_hears_of_a_storage_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "PATIENCE_S", 0.2)

    async def live() -> None:
        objects = Slow(tmp_path)
        looking = Looks(JobQueue(objects))
        try:
            with pytest.raises(StorageUnavailable, match=r"has not answered for 0\.2 s"):
                await looking.at_one("image_a")
        finally:
            objects.may_answer.set()

    asyncio.run(live())
