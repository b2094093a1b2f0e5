"""Threads with a queue that ends, work side by side, and room for pixels."""

import asyncio
import threading

import pytest

from deployments.contracts.errors import InvalidRequest, QueueFull
from deployments.ingress.request.room import Room
from deployments.ingress.request.workers import Workers, together


def test_what_waits_for_a_thread_is_bounded_and_cancellable() -> None:
    async def scene() -> None:
        workers, gate = Workers("tests", threads=1, waiting=1), threading.Event()
        done: list[str] = []

        def work(name: str) -> str:
            gate.wait(10)
            done.append(name)
            return name

        first = asyncio.create_task(workers.run(work, "first"))
        second = asyncio.create_task(workers.run(work, "second"))
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull, match="too much tests"):
            await workers.run(work, "third")
        second.cancel()  # it has not begun: it never will, and its place is free
        await asyncio.wait([second])
        assert workers.unfinished == 1
        fourth = asyncio.create_task(workers.run(work, "fourth"))
        await asyncio.sleep(0.01)
        gate.set()
        assert (await first, await fourth) == ("first", "fourth")
        assert done == ["first", "fourth"]
        assert workers.unfinished == 0

    asyncio.run(scene())


def test_work_that_is_being_done_counts_though_nobody_waits() -> None:
    async def scene() -> None:
        workers, gate = Workers("tests", threads=1, waiting=0), threading.Event()
        begun = threading.Event()

        def hang() -> None:
            begun.set()
            gate.wait(10)

        hung = asyncio.create_task(workers.run(hang))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        hung.cancel()
        await asyncio.wait([hung])
        assert workers.unfinished == 1
        with pytest.raises(QueueFull):
            await workers.run(gate.wait)
        gate.set()
        while workers.unfinished:
            await asyncio.sleep(0.001)

    asyncio.run(scene())


def test_siblings_end_with_the_one_that_fails() -> None:
    async def scene() -> None:
        ended: list[int] = []

        async def endless(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(number)

        async def fails() -> None:
            await asyncio.sleep(0)
            raise InvalidRequest("no", "field")

        with pytest.raises(InvalidRequest, match="no"):
            await together([endless(1), fails(), endless(2)])
        assert sorted(ended) == [1, 2]
        assert await together(asyncio.sleep(0, number) for number in range(3)) == [0, 1, 2]

    asyncio.run(scene())


def test_room_is_given_in_turn_and_given_back() -> None:
    async def scene() -> None:
        room = Room(10)
        order: list[str] = []

        async def take(name: str, pixels: int) -> None:
            async with room.taking(pixels):
                order.append(name)
                assert room.taken <= 10
                await asyncio.sleep(0.01)

        tasks = [
            asyncio.create_task(take(name, pixels))
            for name, pixels in (("six", 6), ("eight", 8), ("one", 1), ("all and more", 99))
        ]
        await asyncio.sleep(0)
        assert order == ["six"]  # one would fit, and waits for eight, which came before
        await asyncio.gather(*tasks)
        assert order == ["six", "eight", "one", "all and more"]
        assert room.taken == 0

    asyncio.run(scene())


def test_who_is_cancelled_as_its_turn_comes_breaks_nobody_elses_end() -> None:
    async def scene() -> None:
        room = Room(10)

        async def take() -> None:
            async with room.taking(9):
                pass

        async with room.taking(10):
            leaving, staying = asyncio.create_task(take()), asyncio.create_task(take())
            await asyncio.sleep(0)
            leaving.cancel()  # it has not run since when the room is free
        await asyncio.wait_for(staying, 30)
        assert leaving.cancelled()
        assert room.taken == 0

    asyncio.run(scene())


@pytest.mark.parametrize("turn_has_come", [False, True])
def test_who_leaves_the_queue_takes_no_room(turn_has_come: bool) -> None:
    async def scene() -> None:
        room = Room(10)

        async def take(pixels: int) -> None:
            async with room.taking(pixels):
                await asyncio.sleep(0)

        async with room.taking(10):
            leaving, staying = asyncio.create_task(take(9)), asyncio.create_task(take(2))
            await asyncio.sleep(0)
            if not turn_has_come:
                leaving.cancel()
                await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait_for(staying, 30)
        await asyncio.wait([leaving])
        assert leaving.cancelled()
        assert room.taken == 0

    asyncio.run(scene())


def test_what_failed_together_leaves_later_timeouts_as_they_are() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError

    async def lived() -> None:
        with pytest.raises(LookupError):
            await together(fails() for _ in range(3))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(5)

    asyncio.run(lived())
