"""deploy/haproxy.cfg where its upstream is a name that DNS knows: a Service of Kubernetes that is
not there yet, and one that was made anew."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import httpx
import pytest

from demo.service import free_port
from tests.deploy.prometheus import wait_until
from tests.deploy.test_haproxy import BINARIES, CONFIG, process

NAME = "tcd-serve-svc.tcd.svc.cluster.local"
REPLY, NXDOMAIN, A = 0x8180, 3, 1


@dataclass
class Dns:
    """A server of DNS that knows one name.

    Attributes:
        address: of IPv4; none while the name is not there.
        silent: it does not answer.
    """

    socket: socket.socket
    address: str | None = None
    silent: bool = False

    @property
    def port(self) -> int:
        port: int = self.socket.getsockname()[1]
        return port

    def run(self) -> None:
        """Answers until it is sent nothing, an empty packet."""
        while True:
            query, client = self.socket.recvfrom(4096)
            if not query:
                return
            if not self.silent:
                self.socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 5
        asked, kind = query[12:end], int.from_bytes(query[end - 4 : end - 2])
        name = b"".join(bytes([len(part)]) + part.encode() for part in NAME.split("."))
        known = self.address is not None and asked.lower().startswith(name + b"\0")
        record = b""
        if self.address is not None and known and kind == A:
            record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(self.address)
        flags = REPLY if known else REPLY | NXDOMAIN
        counts = (1, 1 if record else 0, 0, 0)
        head = query[:2] + b"".join(count.to_bytes(2) for count in (flags, *counts))
        return head + asked + record


@contextmanager
def dns() -> Iterator[Dns]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as served:
        served.bind(("127.0.0.1", 0))
        server = Dns(served)
        thread = Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"", served.getsockname())
            thread.join(10)


@contextmanager
def inside(address: str, port: int, log: Path) -> Iterator[None]:
    """The service, at an address of this machine."""
    with process([sys.executable, "-m", "tests.deploy.inside", str(port), address], {}, log):
        yield


def until(url: str, wanted: int, folder: Path) -> None:
    """Returns when that is the status of an answer."""
    wait_until(lambda: status(url) == wanted, 30, (folder / "haproxy.log").read_text)


def status(url: str) -> int:
    """Of an answer; 0 while nothing listens there."""
    try:
        return httpx.get(f"{url}/seen", timeout=15).status_code
    except httpx.TransportError:
        return 0


@contextmanager
def haproxy(binary: str, upstream: str, known: Dns, folder: Path) -> Iterator[str]:
    """The URL of a proxy that follows its upstream's name, of a `known` server of DNS."""
    config, bind = CONFIG.read_text(), f"127.0.0.1:{free_port()}"
    assert config.count("parse-resolv-conf") == 1  # whose servers are at port 53
    changed = config.replace("parse-resolv-conf", f"nameserver test 127.0.0.1:{known.port}")
    (folder / "haproxy.cfg").write_text(changed)
    env = {"TCD_BIND": bind, "TCD_UPSTREAM": upstream, "TCD_FOLLOW_DNS": "yes"}
    with process([binary, "-f", str(folder / "haproxy.cfg")], env, folder / "haproxy.log"):
        yield f"http://{bind}"


@pytest.mark.parametrize("binary", BINARIES)
def test_a_name_is_followed(binary: str, tmp_path: Path) -> None:
    port = free_port()
    with dns() as known, haproxy(binary, f"{NAME}:{port}", known, tmp_path) as url:
        until(url, 503, tmp_path)  # the name is not there yet
        for address in ("127.0.0.2", "127.0.0.3"):
            with inside(address, port, tmp_path / "inside.log"):
                known.address = address
                until(url, 200, tmp_path)
            known.address = None
            until(url, 503, tmp_path)


@pytest.mark.deep  # longer than HAProxy keeps an address by itself
@pytest.mark.parametrize("binary", BINARIES)
def test_an_address_outlives_dns(binary: str, tmp_path: Path) -> None:
    port = free_port()
    with (
        inside("127.0.0.2", port, tmp_path / "inside.log"),
        dns() as known,
        haproxy(binary, f"{NAME}:{port}", known, tmp_path) as url,
    ):
        known.address = "127.0.0.2"
        until(url, 200, tmp_path)
        known.silent = True
        for _ in range(60):
            time.sleep(1)
            assert status(url) == 200


@pytest.mark.parametrize("binary", BINARIES)
def test_a_name_that_is_not_followed_is_looked_up_once(binary: str, tmp_path: Path) -> None:
    """By the system, as /etc/hosts may have it, and no server of DNS is needed."""
    port, bind = free_port(), f"127.0.0.1:{free_port()}"
    env = {"TCD_BIND": bind, "TCD_UPSTREAM": f"localhost:{port}"}
    with (
        inside("127.0.0.1", port, tmp_path / "inside.log"),
        process([binary, "-f", str(CONFIG)], env, tmp_path / "haproxy.log"),
    ):
        until(f"http://{bind}", 200, tmp_path)
    assert "resolvers" not in (tmp_path / "haproxy.log").read_text()


@pytest.mark.parametrize("binary", BINARIES)
def test_the_machines_own_servers_of_dns_are_asked(binary: str) -> None:
    env = {"TCD_UPSTREAM": f"{NAME}:80", "TCD_FOLLOW_DNS": "yes"}
    subprocess.run([binary, "-c", "-f", str(CONFIG)], env=env, check=True, timeout=60)
