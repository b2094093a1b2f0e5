"""A closed loop of clients over HTTP, in a process of its own that costs little.

`python -m benchmarks.peers.load` reads a `Load` as JSON from standard input, and writes a `Taken`.
"""

import asyncio
import json
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from time import perf_counter, process_time

from benchmarks.peers.traffic import PATH, Kind, requests

PAUSE_S = 0.5  # between bursts


@dataclass(frozen=True)
class Load:
    """What to ask, and for how long.

    Attributes:
        clients: of bursts: requests in each.
        seconds: at least; then until `least` images have come.
        seed: of the requests.
        port, model: of the server that is asked.
    """

    kind: Kind
    clients: int
    seconds: float
    least: int
    seed: int
    port: int = 0
    model: str = ""


@dataclass
class Taken:
    """What came of it.

    Attributes:
        latencies_s: of every request, those included that were under way at the end.
        window_s: until the end; `window_images` came within it.
        bursts_s: from the start of each burst until its last image.
        cpu_s: of this process.
    """

    latencies_s: list[float] = field(default_factory=list)
    window_s: float = 0.0
    window_images: int = 0
    bursts_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    def enough(self, load: Load) -> bool:
        """Whether the load has been borne."""
        return self.window_s >= load.seconds and self.window_images >= load.least

    def image(self, load: Load, latency_s: float, since_s: float) -> None:
        """One of a closed loop came, `since_s` after the loop began."""
        self.latencies_s.append(latency_s)
        if self.window_s:
            return
        self.window_images += 1
        if since_s >= load.seconds and self.window_images >= load.least:
            self.window_s = since_s

    def burst(self, images: int, seconds: float) -> None:
        """All of a burst have come."""
        self.bursts_s.append(seconds)
        self.window_s += seconds
        self.window_images += images


class Failed(Exception):
    """A server answered with something else than an image."""


class Connection:
    """One client's connection, kept alive."""

    def __init__(self, load: Load, reader: StreamReader, writer: StreamWriter) -> None:
        self._head = (
            f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1:{load.port}\r\n"
            "content-type: application/json\r\ncontent-length: "
        ).encode()
        self._reader, self._writer = reader, writer

    @classmethod
    async def opened(cls, load: Load) -> "Connection":
        """A connection to the server of `load`."""
        return cls(load, *await asyncio.open_connection("127.0.0.1", load.port, limit=2**20))

    async def ask(self, body: bytes) -> None:
        """Returns when the answer is there. Raises `Failed` for one that is no success."""
        status, answer = await self.answer(body)
        if status != HTTPStatus.OK:
            raise Failed(f"{status}: {answer[:2000].decode(errors='replace')}")

    async def answer(self, body: bytes) -> tuple[int, bytes]:
        """The status and body of the answer."""
        self._writer.write(self._head + b"%d\r\n\r\n" % len(body) + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        _, found, rest = head.partition(b"\r\ncontent-length:")
        if not found:
            raise Failed(f"no content-length: {head.decode()}")
        answer = await self._reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
        return int(head.split(b" ", 2)[1]), answer

    def close(self) -> None:
        """At the end."""
        self._writer.close()


Client = Callable[[Connection], Coroutine[None, None, None]]


async def closed_loop(load: Load, bodies: Iterator[bytes]) -> Taken:
    """Every client asks anew as soon as it is answered."""
    taken = Taken()
    connections = [await Connection.opened(load) for _ in range(load.clients)]
    started = perf_counter()

    async def client(connection: Connection) -> None:
        while not taken.window_s:
            asked = perf_counter()
            await connection.ask(next(bodies))
            now = perf_counter()
            taken.image(load, now - asked, now - started)

    await _together(connections, client)
    _close(connections)
    return taken


async def bursts(load: Load, bodies: Iterator[bytes]) -> Taken:
    """All clients at once, then a pause, and again."""
    taken = Taken()
    connections = [await Connection.opened(load) for _ in range(load.clients)]

    async def client(connection: Connection) -> None:
        asked = perf_counter()
        await connection.ask(next(bodies))
        taken.latencies_s.append(perf_counter() - asked)

    while not taken.enough(load):
        started = perf_counter()
        await _together(connections, client)
        taken.burst(load.clients, perf_counter() - started)
        await asyncio.sleep(PAUSE_S)
    _close(connections)
    return taken


async def _together(connections: Sequence[Connection], client: Client) -> None:
    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(client(connection))


def _close(connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.close()


def main() -> None:
    """Ends with 1, and says why, if a request failed."""
    load = Load(**json.load(sys.stdin))
    bodies = (request.body(load.model) for request in requests(load.kind, load.seed))
    started = process_time()
    try:
        taken = asyncio.run((bursts if load.kind == "bursts" else closed_loop)(load, bodies))
    except* (Failed, OSError, EOFError) as failed:
        sys.exit(f"a request failed: {failed.exceptions[0]!r}")
    taken.cpu_s = process_time() - started
    json.dump(asdict(taken), sys.stdout)


if __name__ == "__main__":
    main()
