"""What stands around Serve's HTTP proxy, here around a small application under uvicorn."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
import uvicorn.config
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from demo.service import free_port
from deployments.ingress.http import proxy
from tests.http_server import running

PROMPT = "a dragon asleep"
HEAD = b"POST / HTTP/1.1\r\nhost: service.test\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Says which headers reached it, and how long the body was."""
    count, more = 0, True
    while more:
        message = await receive()
        count += len(message.get("body", b""))
        more = message.get("more_body", False)
    headers = [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]]
    body = json.dumps({"headers": headers, "bytes": count}).encode()
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body})


def guarded(app: ASGIApp) -> ASGIApp:
    """As Serve puts it together."""
    for guard in proxy.guards():
        app = guard.cls(app, *guard.args, **guard.kwargs)
    return app


@pytest.fixture(scope="module", autouse=True)
def _protocols() -> Iterator[None]:
    """Guards choose uvicorn's protocol for their process, which is the tests' here, and what its
    log holds."""
    made = logging.getLogRecordFactory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "restored at the end")
        yield
    logging.setLogRecordFactory(made)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "HEAD_S", 0.5)
        port = free_port()
        config = uvicorn.Config(
            guarded(echo), port=port, lifespan="off", log_level="critical", timeout_keep_alive=30
        )
        with running(config):
            yield port


def talk(port: int, *parts: bytes, pause_s: float = 0.0) -> tuple[bytes, float]:
    """All that is answered until the connection is closed, and after how many seconds."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        received = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            while more := connection.recv(65536):
                received += more
        except ConnectionError:
            pass
    return received, time.monotonic() - started


def error_in(answer: bytes) -> dict[str, str]:
    error: dict[str, str] = json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_head_that_does_not_come(port: int) -> None:
    answer, seconds = talk(port, HEAD)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert error_in(answer)["code"] == "deadline_exceeded"
    assert 0.4 < seconds < 3


def test_a_connection_opened_ahead(port: int) -> None:
    """It is closed without a word if nothing is asked on it."""
    answer, seconds = talk(port)
    assert not answer
    assert 0.4 < seconds < 3


def test_it_waits_for_the_first_byte_alone(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "HEAD_S", 2.0)  # whoever speaks may be late
    later = HEAD + b"content-length: 0\r\nconnection: close\r\n\r\n"
    answer, seconds = talk(port, b"", later[:9], later[9:], pause_s=1.2)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert seconds > 2.4


def test_a_head_that_drips(port: int) -> None:
    answer, seconds = talk(port, HEAD, *[b"a: b\r\n"] * 60, pause_s=0.1)
    assert seconds < 5
    assert not answer or answer.startswith(b"HTTP/1.1 408 ")


def test_the_head_of_a_later_request(port: int) -> None:
    first = HEAD + b"content-length: 0\r\n\r\n"
    answer, seconds = talk(port, first, b"GET / HTT", pause_s=0.2)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer
    assert seconds < 3


def test_a_head_without_end(port: int) -> None:
    answer, _ = talk(port, HEAD + b"x: " + b"x" * 70_000)
    assert not answer or error_in(answer)["code"] == "invalid_value"
    assert httpx.post(f"http://127.0.0.1:{port}/").status_code == 200


def test_a_body_has_its_own_time(port: int) -> None:
    head = HEAD + b"content-length: 4\r\nconnection: close\r\n\r\n"
    answer, seconds = talk(port, head, b"ab", b"cd", pause_s=0.4)
    assert b'"bytes": 4' in answer
    assert seconds > 0.8


def test_an_idle_connection_is_kept(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.post("/", content=b"a").is_success
        time.sleep(0.8)
        assert client.post("/", content=b"a").is_success


@pytest.mark.parametrize(
    "name",
    [
        "X-Request-Timeout-Seconds",
        "x-request-disconnect-disabled",
        "serve_multiplexed_model_id",
        "Serve-Multiplexed-Model-Id",
        "x-session-id",
        "x_session_id",
        "x-serve-router-replica",
    ],
)
def test_control_headers_are_dropped(name: str) -> None:
    headers = {name: "1", "x-mine": "2"}
    shown = dict(TestClient(guarded(echo)).get("/", headers=headers).json()["headers"])
    assert shown["x-mine"] == "2"
    assert name.lower() not in shown


@pytest.mark.parametrize("sent", [b"", b"a b", b"\xe9", b"x" * 129, "\u00e9".encode()])
def test_a_request_id_that_cannot_be_one_is_dropped(sent: bytes) -> None:
    headers = [(b"x-request-id", sent)]
    shown = dict(TestClient(guarded(echo)).get("/", headers=headers).json()["headers"])
    assert "x-request-id" not in shown
    shown = dict(
        TestClient(guarded(echo)).get("/", headers={"x-request-id": "a-1"}).json()["headers"]
    )
    assert shown["x-request-id"] == "a-1"


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "not_found"), (408, "deadline_exceeded"), (429, "queue_full"), (503, "not_ready")],
)
def test_what_serve_says_in_plain_text(status: int, code: str) -> None:
    async def serve(_: Scope, __: Receive, send: Send) -> None:
        plain = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": status, "headers": plain})
        await send({"type": "http.response.body", "body": b"Request abc timed out after 1s."})

    answer = TestClient(guarded(serve)).get("/v1/models")
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert ("x-should-retry" in answer.headers) == (status in (404, 408))
    inside = TestClient(guarded(serve)).get("/-/healthz")
    assert inside.text == "Request abc timed out after 1s."


@pytest.mark.parametrize("fails", [False, True])
def test_an_ingress_that_dies_under_a_request(fails: bool) -> None:
    async def serve(*_: object) -> None:
        await asyncio.sleep(0)
        if fails:
            raise RuntimeError

    answer = TestClient(guarded(serve)).get("/v1/models")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "not_ready"


@pytest.mark.parametrize("said", [None, "0", "1"])
def test_what_fails_in_the_proxy_is_logged_without_words_unless_they_may_be(
    said: str | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(*_: object) -> None:
        raise LookupError(f"no token for {PROMPT!r}")

    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    monkeypatch.delenv("TCD_LOG_PROMPTS", raising=False)
    if said is not None:
        monkeypatch.setenv("TCD_LOG_PROMPTS", said)
    logging.setLogRecordFactory(logging.LogRecord)
    assert TestClient(guarded(serve)).get("/v1/models").status_code == 503
    assert "a request failed in Serve's proxy" in caplog.text
    assert "LookupError" in caplog.text
    assert (PROMPT in caplog.text) is (said == "1")


def test_guards_of_a_replica_leave_its_log_to_its_args(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind Serve's own HAProxy."""
    monkeypatch.setattr(proxy, "own_name", lambda: "SERVE_REPLICA::tcd#Ingress#one")
    logging.setLogRecordFactory(logging.LogRecord)
    proxy.guards()
    assert logging.getLogRecordFactory() is logging.LogRecord


def test_an_answer_of_the_service_passes_as_it_is() -> None:
    async def serve(_: Scope, __: Receive, send: Send) -> None:
        kind = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 503, "headers": kind})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        await send({"type": "http.response.body", "body": b"}"})

    assert TestClient(guarded(serve)).get("/readyz").text == "{}"


@pytest.mark.parametrize(
    "ends",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
        b"transfer-encoding:\r\n chunked\r\ncontent-length: 5\r\n\r\n",
    ],
)
def test_a_request_of_two_lengths_is_the_last_of_its_connection(port: int, ends: bytes) -> None:
    """What comes behind its chunks may be its body for whoever stands in front."""
    hidden = b"GET / HTTP/1.1\r\nhost: service.test\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(HEAD + ends + b"0\r\n\r\n" + hidden)
        said = b""
        while part := connection.recv(65536):
            said += part
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("status", [400, 404, 429, 503])
def test_what_another_application_says_in_plain_text_passes_as_it_is(status: int) -> None:
    told = TestClient(guarded(PlainTextResponse("not this one", status))).get("/sheet")
    assert (told.status_code, told.text) == (status, "not this one")
