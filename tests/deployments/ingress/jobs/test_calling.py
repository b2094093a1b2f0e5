"""Webhooks: what is sent, judged by another implementation of Standard Webhooks."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue
from standardwebhooks import Webhook, WebhookVerificationError

from configs.jobs import WebhookArgs
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import ImageRequest
from deployments.ingress.jobs import calling
from deployments.ingress.jobs.asked import ImageAsked
from deployments.ingress.jobs.calling import Calling, Signer, check_webhook
from deployments.ingress.jobs.cards import request_of
from deployments.jobs.folder import FolderObjects
from deployments.jobs.queue import JobQueue
from deployments.jobs.record import JobError, JobRecord

SECRETS = [f"whsec_{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2)]
ARGS = WebhookArgs(secret_env="TCD_TEST_WEBHOOKS", allowed_hosts=("127.0.0.1",), allow_http=True)
ENDS = {"completed", "failed", "cancelled"}


@dataclass
class Receiver:
    """Hears events. `refuses`: so many posts are answered with 500 first."""

    refuses: int = 0
    heard: list[dict[str, Any]] = field(default_factory=list)
    tried: int = 0
    port: int = 0
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.tried += 1
                refused = receiver.tried <= receiver.refuses
                if not refused:
                    for secret in SECRETS:
                        Webhook(secret).verify(body, dict(self.headers))
                    event = json.loads(body)
                    receiver.heard.append(event | {"id": self.headers["webhook-id"]})
                self.send_response(500 if refused else 204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv(ARGS.secret_env, " ".join(SECRETS))
    monkeypatch.setattr(calling, "WAITS_S", (0.02, 0.1))
    monkeypatch.setattr(calling, "LOOK_S", 0.02)
    receiver = Receiver()
    receiver.start()
    yield receiver
    receiver.stop()


def job(name: str, url: str | None) -> JobRecord:
    asked = ImageAsked(request=ImageRequest("a", model="sd15"))
    return JobRecord(
        id=name,
        kind="image",
        owner="",
        digest="",
        request=request_of(asked, {}),
        folder=f"files/{name}/",
        created_at=0.0,
        webhook_url=url,
    )


def lived(queue: JobQueue, names: list[str], url: str) -> None:
    """One job is completed, one fails, one is cancelled at its work, one before."""
    for name in names:
        queue.add(job(name, url))
    taken = [queue.take() for _ in names[:3]]
    queue.cancel(names[3])
    first, second, third = (one for one in taken if one is not None)
    queue.fail(second, JobError(code="x", message="y"))
    queue.cancel(third.id)
    body: dict[str, JsonValue] = {
        "created": 0,
        "model": "sd15",
        "output_format": "png",
        "size": "8x8",
        "data": [],
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"text_tokens": 0},
            "output_tokens": 0,
            "total_tokens": 0,
            "denoising_steps": 0,
        },
    }
    queue.complete(first, (), body)


@contextmanager
def calls(*queues: JobQueue, made: list[Calling] | None = None) -> Iterator[None]:
    """Workers that deliver, on a loop of their own; `made` takes them."""
    over: list[asyncio.Event] = []
    loops: list[asyncio.AbstractEventLoop] = []
    begun = threading.Event()

    async def run() -> None:
        async def look(queue: JobQueue) -> None:
            while True:
                await asyncio.to_thread(queue.jobs)
                await asyncio.sleep(0.02)

        callings = [Calling(queue, ARGS) for queue in queues]
        if made is not None:
            made.extend(callings)
        works = [one.run() for one in callings] + [look(q) for q in queues]
        tasks = [asyncio.create_task(work) for work in works]
        over.append(asyncio.Event())
        loops.append(asyncio.get_running_loop())
        begun.set()
        await over[0].wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert begun.wait(10)
    try:
        yield
    finally:
        loops[0].call_soon_threadsafe(over[0].set)
        thread.join()


def wait_for(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not come about")


def by_job(receiver: Receiver) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for event in receiver.heard:
        found[event["data"]["id"]].append(event["type"])
    return found


EXPECTED = {
    "a": ["job.in_progress", "job.completed"],
    "b": ["job.in_progress", "job.failed"],
    "c": ["job.in_progress", "job.cancelled"],
    "d": ["job.cancelled"],
}


def test_each_event_once_and_in_order(tmp_path: Path, receiver: Receiver) -> None:
    """By two workers, of which one delivers."""
    queues = [JobQueue(FolderObjects(tmp_path)) for _ in range(2)]
    lived(queues[0], list("abcd"), receiver.url)
    queues[0].add(job("silent", None))
    with calls(*queues):
        wait_for(lambda: len(receiver.heard) >= 7)
        wait_for(lambda: all(record.untold is None for record in queues[0].jobs()))
        threading.Event().wait(0.3)
    assert by_job(receiver) == EXPECTED
    ids = [event["id"] for event in receiver.heard]
    assert len(set(ids)) == 7
    failed = next(e for e in receiver.heard if e["type"] == "job.failed")
    assert failed["data"]["error"] == {"code": "x", "message": "y", "param": None}
    assert failed["timestamp"].endswith("Z")


def test_a_receiver_that_is_away(tmp_path: Path, receiver: Receiver) -> None:
    queue = JobQueue(FolderObjects(tmp_path))
    receiver.refuses = 5
    receiver.stop()
    lived(queue, list("abcd"), receiver.url)
    with calls(queue):
        threading.Event().wait(0.3)
        assert receiver.heard == []
        receiver.start()
        wait_for(lambda: len(receiver.heard) >= 7)
    assert receiver.tried >= 12
    assert by_job(receiver) == EXPECTED


def test_a_receiver_that_hangs_stops_no_other(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many of its jobs are due at all times, and are older."""
    monkeypatch.setattr(calling, "ANSWER_S", 0.5)
    queue = JobQueue(FolderObjects(tmp_path))
    with socket.create_server(("127.0.0.1", 0), backlog=512) as silent:
        names = [f"a{n}" for n in range(4 * calling.AT_ONCE)]
        for name in names:
            queue.add(job(name, f"http://127.0.0.1:{silent.getsockname()[1]}/"))
            queue.cancel(name)
        queue.jobs()
        made: list[Calling] = []
        with calls(queue, made=made):
            wait_for(lambda: len(made[0]._failures) == len(names))
            queue.add(job("b", receiver.url))
            queue.cancel("b")
            began = time.monotonic()
            wait_for(lambda: receiver.heard)
            assert time.monotonic() - began < 5
    assert by_job(receiver) == {"b": ["job.cancelled"]}


def test_what_is_delivered_outlives_its_worker(tmp_path: Path, receiver: Receiver) -> None:
    """The next one does not begin anew; of one that dies between, the event comes again."""
    clock = [0.0]
    queue = JobQueue(FolderObjects(tmp_path), clock=lambda: clock[0])
    queue.add(job("a", receiver.url))
    mine = queue.take()
    assert mine is not None
    with calls(queue):
        wait_for(lambda: len(receiver.heard) == 1)
        wait_for(lambda: queue.get("a").told == ("job.in_progress",))
    queue.cancel("a")
    queue.jobs()
    assert queue.take_call() is not None  # and it dies
    other = JobQueue(FolderObjects(tmp_path), clock=lambda: clock[0])
    with calls(other):
        threading.Event().wait(0.3)
        assert len(receiver.heard) == 1

        def heard_in_time() -> bool:
            if other.age_s == 0:  # it has looked since: who stands still counts anew
                clock[0] += 7
            return len(receiver.heard) == 2

        wait_for(heard_in_time)
    assert by_job(receiver) == {"a": ["job.in_progress", "job.cancelled"]}


def test_a_signature_of_another_secret_or_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ARGS.secret_env, SECRETS[0])
    now = int(time.time())
    headers = Signer(ARGS).headers("one", now, b"{}")
    assert Webhook(SECRETS[0]).verify(b"{}", headers) == {}
    for secret, body in ((SECRETS[1], b"{}"), (SECRETS[0], b"[]")):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, headers)


@pytest.mark.parametrize("secret", ["", "whsec_", "secret", "whsec_!!", "whsec_AAAA"])
def test_a_secret_that_is_none(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv(ARGS.secret_env, secret)
    with pytest.raises(ValueError, match=f"secret_env is {ARGS.secret_env}"):
        Signer(ARGS)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/x",
        "http://evil.example/x",
        "http://127.0.0.1.evil.example/",
        "http://user@127.0.0.1/",
        "http://[::1/",
        "nothing",
        "http://127.0.0.1@evil.example/",
        "http://127.0.0.1/" + "a" * 3000,
    ],
)
def test_whom_it_does_not_call(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_webhook(url, ARGS)
    assert refused.value.param == "webhook_url"
    check_webhook("http://127.0.0.1:9/x?y=z", ARGS)
    with pytest.raises(InvalidRequest, match="begins with https://"):
        check_webhook("http://127.0.0.1/", ARGS.model_copy(update={"allow_http": False}))
    with pytest.raises(InvalidRequest, match="is not configured"):
        check_webhook("https://127.0.0.1/", None)
