"""What surrounds the routes: bodies that are too much or too late, methods, origins, the log."""

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openapi_spec_validator import validate
from ray.exceptions import TaskCancelledError
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from configs.app import FolderStorage, ServiceArgs
from deployments.contracts.jobs import Caller, ImageRequest, ImageResult, Progress, StreamEvent
from deployments.ingress.http.app import make_app
from deployments.ingress.http.events import CompletedEvent, ErrorEvent, PartialImageEvent
from deployments.ingress.http.keys import STATE
from deployments.ingress.http.middleware import HeadAsGet
from deployments.ingress.request.service import NOBODY
from tests.deployments.ingress.local_jobs import NO_JOBS, local_desk
from tests.fuzz.application import FAILURES, NoModels, application

GENERATIONS = "/v1/images/generations"
BODY: dict[str, object] = {"prompt": "a red ball", "seed": 4}
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
MIB = 2**20


def client(**args: Any) -> TestClient:
    return TestClient(application(ServiceArgs(default_model="none", **args)))


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code
    return error


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    """What is logged of refusals. (Serve's own logger passes nothing on to pytest's.)"""
    heard: list[logging.LogRecord] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record)

    logger, handler = logging.getLogger("ray.serve.tcd"), Listening()
    logger.addHandler(handler)
    yield heard
    logger.removeHandler(handler)


@pytest.mark.parametrize("path", [GENERATIONS, "/v1/images/edits"])
def test_a_packed_body_is_refused_by_its_name(path: str) -> None:
    kind = JSON if path == GENERATIONS else FORM
    packed = gzip.compress(json.dumps(BODY).encode())
    headers = {**kind, "content-encoding": "gzip"}
    answer = client().post(path, content=packed, headers=headers)
    assert "content-encoding gzip" in refused(answer, 400, "invalid_value")["message"]


@pytest.mark.parametrize("coding", ["", "identity", "identity, Identity"])
def test_a_body_that_says_it_is_not_packed(coding: str) -> None:
    answer = client().post(GENERATIONS, json=BODY, headers={"content-encoding": coding})
    assert answer.status_code == 200


@pytest.mark.parametrize("codings", [["identity", "gzip"], ["x" * 9000], ["identity, br"]])
def test_every_coding_is_looked_at_and_quoted_shortly(codings: list[str]) -> None:
    headers = [("content-encoding", coding) for coding in codings]
    answer = client().post(GENERATIONS, json=BODY, headers=headers)
    assert len(refused(answer, 400, "invalid_value")["message"]) < 200


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(("path", "kind"), [(GENERATIONS, JSON), ("/v1/images/edits", FORM)])
def test_a_body_that_is_too_large(path: str, kind: dict[str, str], announced: bool) -> None:
    body = b" " * (2 * MIB)
    content = body if announced else iter([body[:MIB], body[MIB:]])
    answer = client(max_body_bytes=MIB).post(path, content=content, headers=kind)
    refused(answer, 413, "request_too_large")


async def asked(
    app: FastAPI, path: str, headers: dict[str, str], parts: AsyncIterator[Message]
) -> list[Message]:
    """The answer to a request whose body comes in these parts."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await app(scope, lambda: anext(parts), send)
    return sent


async def half_a_body(then: Message | Exception | None) -> AsyncIterator[Message]:
    yield {"type": "http.request", "body": b"--x", "more_body": True}
    if then is None:
        await asyncio.Event().wait()
    elif isinstance(then, Exception):
        raise then
    else:
        yield then


@pytest.mark.parametrize(("path", "kind"), [(GENERATIONS, JSON), ("/v1/images/edits", FORM)])
def test_a_body_that_does_not_come(path: str, kind: dict[str, str]) -> None:
    app = application(ServiceArgs(body_timeout_s=0.05))
    start, body = asyncio.run(asked(app, path, kind, half_a_body(None)))
    assert start["status"] == 408
    error = json.loads(body["body"])["error"]
    assert error["code"] == "deadline_exceeded"
    assert "0.05 s" in error["message"]


def test_time_for_the_body_is_not_time_for_the_answer() -> None:
    class Slow(NoModels):
        async def generate(self, request: ImageRequest, caller: Caller = NOBODY) -> ImageResult:
            await asyncio.sleep(0.2)
            return await super().generate(request)

    desk: Any = None
    app = make_app(Slow(), desk, ServiceArgs(body_timeout_s=0.05))
    assert TestClient(app).post(GENERATIONS, json=BODY).status_code == 200


@pytest.mark.parametrize("gone", [{"type": "http.disconnect"}, TaskCancelledError()])
@pytest.mark.parametrize(("path", "kind"), [(GENERATIONS, JSON), ("/v1/images/edits", FORM)])
def test_a_client_that_goes_is_no_error(
    path: str, kind: dict[str, str], gone: Message | Exception, lines: list[logging.LogRecord]
) -> None:
    """Serve says so, or ends the call."""
    asyncio.run(asked(application(ServiceArgs()), path, kind, half_a_body(gone)))
    (line,) = lines
    assert line.levelno == logging.INFO
    said = json.loads(line.getMessage())
    assert (said["status"], said["outcome"]) == (499, "cancelled")


def test_nor_is_one_that_goes_from_a_stream(lines: list[logging.LogRecord]) -> None:
    class Long(NoModels):
        async def stream(self, *_: object, **more: object) -> AsyncGenerator[StreamEvent]:
            yield Progress(0, 1, 4)
            await asyncio.Event().wait()

    async def parts() -> AsyncIterator[Message]:
        body = json.dumps(BODY | {"stream": True}).encode()
        yield {"type": "http.request", "body": body, "more_body": False}
        await asyncio.sleep(0.05)
        raise TaskCancelledError

    desk: Any = None
    asyncio.run(asked(make_app(Long(), desk, ServiceArgs()), GENERATIONS, JSON, parts()))
    assert lines == []


def test_what_nobody_expected(lines: list[logging.LogRecord]) -> None:
    class Broken(NoModels):
        async def generate(self, request: ImageRequest, caller: Caller = NOBODY) -> ImageResult:
            raise RuntimeError(f"a secret of {request.prompt}")

    args = ServiceArgs(cors_origins=("https://app.example",))
    app = make_app(Broken(), local_desk(Broken(), args, NO_JOBS), args)
    page = TestClient(app, headers={"origin": "https://app.example"})
    answer = page.post(GENERATIONS, json=BODY)
    assert "a secret" not in refused(answer, 500, "internal_error")["message"]
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    metrics = page.get("/metrics").text
    assert f'tcd_http_requests_total{{route="{GENERATIONS}",status="500"}} 1.0' in metrics
    assert [line.levelname for line in lines] == ["ERROR", "WARNING"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", GENERATIONS, "POST, OPTIONS"),
        ("HEAD", GENERATIONS, "POST, OPTIONS"),
        ("PUT", "/v1/videos/some", "HEAD, GET, DELETE, OPTIONS"),
        ("DELETE", "/v1/videos", "HEAD, GET, POST, OPTIONS"),
        ("POST", "/", "HEAD, GET, OPTIONS"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(method: str, path: str, allow: str) -> None:
    answer = client().request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    if method != "HEAD":
        refused(answer, 405, "method_not_allowed")


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/", "HEAD, GET, OPTIONS"),
        ("/healthz", "HEAD, GET, OPTIONS"),
        ("/v1/models", "HEAD, GET, OPTIONS"),
        ("/v1/videos", "HEAD, GET, POST, OPTIONS"),
        (GENERATIONS, "POST, OPTIONS"),
    ],
)
def test_options_says_what_a_path_takes(path: str, allow: str) -> None:
    for page in (client(), client(cors_origins=("https://app.example",))):
        answer = page.options(path)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["allow"] == allow
    refused(client().options("/nothing"), 404, "not_found")


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/models", "/openapi.json"])
def test_head_is_get_without_its_body(path: str) -> None:
    head, get = client().head(path), client().get(path)
    assert head.status_code == get.status_code == 200
    assert head.headers == get.headers
    assert head.content == b""


@pytest.mark.parametrize("path", ["/nothing", "/healthz/", "/v1/models/", "//v1/models"])
def test_paths_are_exact(path: str) -> None:
    refused(client().get(path, follow_redirects=False), 404, "not_found")


def test_origins() -> None:
    page = client(cors_origins=("https://app.example",))
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "x-new"}
    allowed = page.options(GENERATIONS, headers={"origin": "https://app.example", **asks})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert allowed.headers["access-control-allow-headers"] == "x-new"
    stranger = {"origin": "https://evil.example"}
    refused(page.options(GENERATIONS, headers={**stranger, **asks}), 400, "invalid_value")
    assert "access-control-allow-origin" not in page.get("/healthz", headers=stranger).headers
    closed = client().get("/healthz", headers={"origin": "https://app.example"})
    assert "access-control-allow-origin" not in closed.headers


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://a b"])
def test_an_origin_that_is_none(origin: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        ServiceArgs(cors_origins=(origin,))


@pytest.mark.parametrize("host", ["evil.example/a?", "a b", "user@evil.example", "", "\xff"])
def test_urls_begin_as_the_configuration_says(tmp_path: Path, host: str) -> None:
    storage = FolderStorage(kind="folder", path=str(tmp_path))
    body = {**BODY, "response_format": "url"}
    headers = {b"host": host.encode("latin-1")}
    told = client(storage=storage, public_url="https://pictures.example/tcd/")
    (image,) = told.post(GENERATIONS, json=body, headers=headers).json()["data"]
    assert image["url"].startswith("https://pictures.example/tcd/v1/files/")
    # Without it a `Host` that is none is not repeated.
    (image,) = client(storage=storage).post(GENERATIONS, json=body, headers=headers).json()["data"]
    assert image["url"].startswith("http://testserver/v1/files/")


@pytest.mark.parametrize("url", ["pictures.example", "https://", "https://a?b", "ftp://a"])
def test_a_public_url_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="public_url"):
        ServiceArgs(public_url=url)


def test_a_refusal_is_one_line(lines: list[logging.LogRecord]) -> None:
    secret = "a secret prompt"
    answer = client().post(
        GENERATIONS,
        json={"prompt": secret, "n": 0},
        headers={"x-request-id": "abc", "authorization": "Bearer hidden"},
    )
    message = refused(answer, 400, "invalid_value")["message"]
    (line,) = lines
    assert line.levelno == logging.INFO
    assert vars(line)["request_id"] == "abc"
    said = json.loads(line.getMessage())
    assert list(said.pop("seconds")) == ["total"]
    assert said == {
        "id": "abc",
        "route": f"POST {GENERATIONS}",
        "outcome": "refused",
        "status": 400,
        "code": "invalid_value",
        "param": "n",
        "reason": message,
    }
    for path in ("/healthz", "/v1/models", "/metrics"):
        assert client().get(path).status_code == 200
    assert len(lines) == 1, "what is neither work nor refused is not logged"


def test_the_log_names_the_key(lines: list[logging.LogRecord]) -> None:
    app = application(ServiceArgs())

    async def keyed(scope: Scope, receive: Receive, send: Send) -> None:
        alice = SimpleNamespace(name="alice", hash="hidden")
        await app({**scope, "state": {STATE: alice}}, receive, send)

    TestClient(keyed).post(GENERATIONS, json={})
    (line,) = lines
    assert json.loads(line.getMessage())["key"] == "alice"
    assert "hidden" not in line.getMessage()


def test_a_refusal_of_what_the_client_made_up_is_one_line(
    lines: list[logging.LogRecord],
) -> None:
    client().get("/a%0Arefused: nothing%1B[31m")
    client().get("/" + "\u2028" * 1000)
    client().post(GENERATIONS, json={"prompt": "a", "x\n" * 500: 1})
    client().post(GENERATIONS, json={}, headers={"x-request-id": "y" * 60_000})
    assert len(lines) == 4
    for line in lines:
        text = line.getMessage()
        assert text.isascii()
        assert text.isprintable()
        assert len(text) < 3000
        assert json.loads(text)["outcome"] == "refused"


def test_a_stream_that_ends_with_an_error_is_one_line(lines: list[logging.LogRecord]) -> None:
    asked = {**BODY, "stream": True, "num_inference_steps": 13}
    service = client()
    answer = service.post(GENERATIONS, json=asked, headers={"x-request-id": "abc"})
    assert answer.status_code == 200
    service.post(GENERATIONS, json={})
    figures = service.get("/metrics").text
    for status, code in (("500", "generation_failed"), ("400", "invalid_value")):
        said = f'code="{code}",route="{GENERATIONS}",status="{status}"'
        assert f"tcd_http_errors_total{{{said}}} 1.0" in figures
    assert f'tcd_http_requests_total{{route="{GENERATIONS}",status="200"}} 1.0' in figures
    line, _ = lines
    assert line.levelno == logging.WARNING
    assert vars(line)["request_id"] == "abc"
    said = json.loads(line.getMessage())
    assert said.pop("seconds")["total"] > 0
    assert said == {
        "id": "abc",
        "route": f"POST {GENERATIONS}",
        "outcome": "broken_off",
        "status": 500,
        "code": "generation_failed",
        "reason": "not a number",
    }


@pytest.mark.parametrize("index", range(len(FAILURES)))
def test_every_refusal_is_logged_by_its_code(index: int, lines: list[logging.LogRecord]) -> None:
    answer = client().post(GENERATIONS, json={**BODY, "seed": 4 * index + 3})
    error = answer.json()["error"]
    (line,) = lines
    said = json.loads(line.getMessage())
    assert (said["status"], said["code"]) == (answer.status_code, error["code"])
    assert line.levelname == ("WARNING" if answer.status_code >= 500 else "INFO")


def events(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def test_events_are_as_described() -> None:
    body = {**BODY, "n": 2, "stream": True, "partial_images": 1}
    shown = events(client().post(GENERATIONS, json=body).text)
    for event in shown:
        kind = PartialImageEvent if "partial_image" in event["type"] else CompletedEvent
        known = kind.model_validate(event, extra="forbid")
        assert set(event) == set(type(known).model_fields)
    assert [event["type"].partition(".")[2] for event in shown] == [
        *("partial_image", "completed", "partial_image", "completed")
    ]
    broken = events(client().post(GENERATIONS, json={**body, "num_inference_steps": 13}).text)
    ErrorEvent.model_validate(broken[-1], extra="forbid")


@pytest.mark.parametrize("keys", [None, "TCD_TEST_KEYS"])
def test_the_description(tmp_path: Path, keys: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCD_TEST_KEYS", "good")
    storage = FolderStorage(kind="folder", path=str(tmp_path))
    described = client(storage=storage, api_keys_env=keys).get("/openapi.json").json()
    validate(described)
    paths = described["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]
    assert not any("422" in operation["responses"] for operation in operations)
    form = paths["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert set(form["schema"]["required"]) == {"prompt", "image"}
    assert form["schema"]["properties"]["mask"]["format"] == "binary"
    assert form["schema"]["properties"]["loras"]["contentMediaType"] == "application/json"
    made = paths[GENERATIONS]["post"]["responses"]
    assert set(made["200"]["content"]) == {"application/json", "text/event-stream"}
    assert ("401" in made) == ("403" in made) == (keys is not None)
    assert ("security" in paths[GENERATIONS]["post"]) == (keys is not None)
    assert "security" not in paths["/v1/files/{name}"]["get"]
    film = paths["/v1/videos/{video_id}/content"]["get"]["responses"]["200"]["content"]
    assert set(film) == {"video/mp4", "image/gif", "image/webp", "image/jpeg"}
    full = described["components"]["responses"]["Refused429"]
    assert {"retry-after", "retry-after-ms", "x-request-id"} == set(full["headers"])


def test_its_examples_are_understood() -> None:
    described = client().get("/openapi.json").json()
    for path in (GENERATIONS, "/v1/videos", "/sdapi/v1/txt2img"):
        body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        answer = client().post(path, json={**body["example"], "seed": 0})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("seconds", "frames", "fps"), [(5e-324, 1, 8), (2, 16, 8), (60, 60, 1)])
def test_a_video_of_any_length(seconds: float, frames: int, fps: int) -> None:
    answer = client().post("/v1/videos", json={"prompt": "a", "seed": 0, "seconds": seconds})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["num_frames"], answer.json()["fps"]) == (frames, fps)


def test_a_websocket_is_closed() -> None:
    from starlette.websockets import WebSocketDisconnect

    with (
        pytest.raises(WebSocketDisconnect),
        client().websocket_connect(GENERATIONS),
    ):
        pass


def test_many_at_once_do_not_mix_their_limits() -> None:
    async def ask() -> list[int]:
        transport = httpx.ASGITransport(application(ServiceArgs(max_body_bytes=MIB)))
        async with httpx.AsyncClient(transport=transport, base_url="http://service.test") as http:
            bodies = [{"prompt": "a" * (2 * MIB if index % 2 else 2)} for index in range(8)]
            answers = await asyncio.gather(*(http.post(GENERATIONS, json=b) for b in bodies))
        return [answer.status_code for answer in answers]

    assert asyncio.run(ask()) == [200, 413] * 4


def test_head_leaves_the_servers_own_scope_alone() -> None:
    """uvicorn reads the method again when the answer has ended."""
    seen, sent = list[str](), list[Message]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["method"])
        await send({"type": "http.response.body", "body": b"image"})

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "HEAD"}
    asyncio.run(HeadAsGet(app)(scope, receive, send))
    assert (seen, scope["method"]) == (["GET"], "HEAD")
    assert sent == [{"type": "http.response.body", "body": b""}]
