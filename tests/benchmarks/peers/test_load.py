"""The peers' benchmark: the clients, against a server that answers at once."""

import asyncio
import json
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator

import pytest

from benchmarks.peers.load import Load, Taken, bursts, closed_loop
from benchmarks.peers.traffic import Kind
from demo.service import ROOT


class Answering:
    """An HTTP server that gives every request one answer, and keeps the bodies."""

    def __init__(self, answer: bytes) -> None:
        self.bodies: list[bytes] = []
        self._answer = answer

    async def talk(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                self.bodies.append(await reader.readexactly(length))
                writer.write(self._answer)
        except asyncio.IncompleteReadError:
            writer.close()


def bodies() -> Iterator[bytes]:
    return (b"%d" % number for number in range(10**6))


def driven(server: Answering, kind: Kind, clients: int, seconds: float, least: int) -> Taken:
    async def drive() -> Taken:
        listening = await asyncio.start_server(server.talk, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        load = Load(kind, clients, seconds, least, 0, port)
        async with listening:
            return await (bursts if kind == "bursts" else closed_loop)(load, bodies())

    return asyncio.run(drive())


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BAD = b"HTTP/1.1 503 Nope\r\ncontent-length: 4\r\n\r\nfull"


def test_clients_ask_until_there_are_enough() -> None:
    server = Answering(GOOD)
    taken = driven(server, "uniform", clients=3, seconds=0.0, least=20)
    assert taken.window_images == 20
    assert len(taken.latencies_s) == len(server.bodies) <= 22
    assert len(set(server.bodies)) == len(server.bodies)
    assert taken.window_s > 0


def test_a_burst_is_all_clients_at_once() -> None:
    server = Answering(GOOD)
    taken = driven(server, "bursts", clients=5, seconds=0.0, least=6)
    assert len(server.bodies) == len(taken.latencies_s) == taken.window_images == 10
    assert taken.window_s == pytest.approx(sum(taken.bursts_s))


@pytest.mark.parametrize("kind", ["uniform", "bursts"])
def test_a_failure_ends_the_load(kind: Kind) -> None:
    with pytest.raises(ExceptionGroup) as failed:
        driven(Answering(BAD), kind, clients=2, seconds=1.0, least=1)
    assert "full" in str(failed.value.exceptions[0])


def test_the_process_says_what_failed() -> None:
    load = {"kind": "uniform", "clients": 1, "seconds": 1, "least": 1, "seed": 0, "port": 1}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.load"],
        input=json.dumps(load),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "a request failed: ConnectionRefusedError" in done.stderr


def test_the_clients_process_is_light() -> None:
    code = "import sys, benchmarks.peers.load; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert {"numpy", "torch", "pydantic"}.isdisjoint(done.stdout.split())
