"""Every command waits for a service that is full, and says so; the service is a fake one."""

import json
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tcd.__main__ import main
from tests.http_server import serving

FULL = "the service is full: asked again in 0.1 s"
IMAGE = {
    "type": "image_generation.completed",
    "b64_json": "AAAA",
    "image_index": 0,
    "seed": 1,
    "size": "64x64",
}
VIDEO = {"seed": 1, "size": "64x64", "output_format": "webp"}
JOB = {"id": "j", "kind": "video", "status": "completed", "progress": 100, "video": VIDEO}
EVENTS = {"/v1/images/generations": IMAGE, "/v1/jobs/j/events": {"type": "job", "job": JOB}}
BODIES = {"/v1/videos": {"id": "j"}, "/v1/models": {"data": []}, "/v1/jobs": {"data": []}}


class Full(BaseHTTPRequestHandler):
    """Is full when a route is asked for the first time."""

    asked: ClassVar[set[str]] = set()
    again_ms: ClassVar[str] = "100"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.partition("?")[0]
        if path not in self.asked:
            self.asked.add(path)
            self.answer(429, "application/json", b'{"error": {"message": "full"}}')
        elif path in EVENTS:
            event = f"data: {json.dumps(EVENTS[path])}\n\n"
            self.answer(200, "text/event-stream", event.encode())
        else:
            self.answer(200, "application/json", json.dumps(BODIES.get(path)).encode())

    do_POST = do_GET

    def answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("retry-after-ms", self.again_ms)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Full, "asked", set())
    Path("photo.png").write_bytes(b"none")
    with serving(Full) as url:
        monkeypatch.setenv("TCD_URL", url)
        yield


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(
    ("words", "made"),
    [
        (["generate", "a"], "1.png"),
        (["animate", "a"], "1.webp"),
        (["preprocess", "canny", "photo.png"], "photo-canny.png"),
        (["jobs", "wait", "j"], "1.webp"),
        (["jobs", "list"], None),
        (["models"], None),
    ],
)
def test_a_full_service_is_waited_for(
    words: Sequence[str], made: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert FULL in said.err
    assert made is None or Path(made).exists()


@pytest.mark.usefixtures("full")
def test_only_as_long_as_was_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Full, "again_ms", "10000")
    with pytest.raises(SystemExit) as ended:
        main(["preprocess", "canny", "photo.png", "--timeout", "5"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: 429: full\n"


@pytest.mark.parametrize(
    "words", [["generate"], ["edit"], ["animate"], ["again"], ["preprocess"], ["jobs", "wait"]]
)
def test_the_help_says_so(
    words: Sequence[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert "and a full service asked again" in capsys.readouterr().out
