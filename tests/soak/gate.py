"""What stands before a server of S3 or of the hub, and can be closed, slow or lying."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

Mode = Literal["open", "down", "hangs", "slow", "cuts", "lies"]
MODES: tuple[Mode, ...] = ("down", "hangs", "slow", "cuts", "lies")
SLOW_BYTES_S = 500
CUT_BYTES = 400
LIE = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\ncontent-type: image/png\r\n\r\nno picture"
CHUNK = 2**16


class Gate:
    """A port that passes connections on to another. A change of `mode` ends those that are open.

    Modes: `down` ends every connection at once, `hangs` takes it and never answers, `slow` passes
    500 bytes a second, `cuts` ends each answer after 400 bytes, `lies` says 200 and sends less than
    it announces.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._mode: Mode = "open"
        self._open: set[asyncio.Task[None]] = set()
        self.port = 0
        self.asked = 0

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://127.0.0.1:{self.port}"

    def change(self, mode: Mode) -> None:
        """From now on so."""
        self._mode = mode
        for task in self._open:
            task.cancel()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Gate"]:
        """Takes connections within the block."""
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.change("down")
            server.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.asked += 1
        try:
            await self._serve(reader, writer)
        except (asyncio.CancelledError, OSError):
            pass  # the mode has changed, or somebody went away
        finally:
            self._open.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "down":
            return
        if self._mode == "hangs":
            await asyncio.Event().wait()
        if self._mode == "lies":
            await reader.read(CHUNK)
            writer.write(LIE)
            await writer.drain()
            return
        upstream_reader, upstream_writer = await asyncio.open_connection(
            "127.0.0.1", self._upstream
        )
        try:
            asking = asyncio.create_task(_pass(reader, upstream_writer))
            try:
                await self._answer(upstream_reader, writer)
            finally:
                asking.cancel()
        finally:
            upstream_writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "cuts":
            writer.write(await reader.read(CUT_BYTES))
            await writer.drain()
        elif self._mode == "slow":
            while data := await reader.read(SLOW_BYTES_S // 5):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(len(data) / SLOW_BYTES_S)
        else:
            await _pass(reader, writer)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
