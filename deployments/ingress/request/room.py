"""Room for decoded pictures: a bound on the pixels that are in memory at a time."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deployments.contracts.errors import QueueFull

MAX_WAITING = 256


class Room:
    """Lets so many pixels in, first come, first served.

    Args:
        pixels: at a time. Whoever asks for more at once than there is waits for all of it.
    """

    def __init__(self, pixels: int) -> None:
        self._all = pixels
        self._free = pixels
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def taken(self) -> int:
        """Pixels that are in."""
        return self._all - self._free

    @asynccontextmanager
    async def taking(self, pixels: int) -> AsyncIterator[None]:
        """Waits for room, and gives it back at the end of the block. Raises `QueueFull` if too
        many wait already."""
        pixels = min(pixels, self._all)
        await self._take(pixels)
        try:
            yield
        finally:
            self._free += pixels
            self._admit()

    async def _take(self, pixels: int) -> None:
        if not self._waiting and pixels <= self._free:
            self._free -= pixels
            return
        if len(self._waiting) >= MAX_WAITING:
            raise QueueFull("too many pictures are waiting to be decoded")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (turn, pixels)
        self._waiting.append(waiting)
        try:
            await turn
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            else:  # its turn had come
                self._free += pixels
            self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][1] <= self._free:
            turn, pixels = self._waiting.popleft()
            self._free -= pixels
            if not turn.done():  # who was cancelled just now gives its room back
                turn.set_result(None)
