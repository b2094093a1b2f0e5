"""Jobs whose callers have died."""

import asyncio
from collections.abc import Callable

from deployments.contracts.jobs import ImageJob
from deployments.diffusion.orphans import Orphans

DEAD = "SERVE_REPLICA::tcd#JobWorker#dead"
ALIVE = "SERVE_REPLICA::tcd#Ingress#alive"


def job(name: str, asked_by: str | None) -> ImageJob:
    return ImageJob(name, "a fox", (1,), 64, 64, asked_by=asked_by)


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not met():
            await asyncio.sleep(0.005)


def test_the_jobs_of_the_dead_are_cancelled_and_no_others() -> None:
    cancelled: list[str] = []
    asked: list[str] = []

    def lives(caller: str) -> bool:
        asked.append(caller)
        return caller != DEAD

    async def live() -> None:
        orphans = Orphans(cancelled.append, lives, look_s=0.01)
        jobs = (job("mine", ALIVE), job("its", DEAD), job("other", DEAD), job("nobody's", None))
        with orphans.watching(jobs[0]), orphans.watching(jobs[3]), orphans.watching(jobs[1]):
            with orphans.watching(jobs[2]):
                await until(lambda: set(asked) == {ALIVE, DEAD} and len(set(cancelled)) == 2)
            assert set(cancelled) == {"its", "other"}
            cancelled.clear()
            await until(lambda: len(cancelled) > 1)  # it may not have been in the engine yet
            assert set(cancelled) == {"its"}
        async with asyncio.timeout(30):  # soon nobody is asked about any more, without jobs
            while asked:
                asked.clear()
                await asyncio.sleep(0.05)
        with orphans.watching(job("later", DEAD)):
            await until(lambda: "later" in cancelled)

    asyncio.run(live())
