"""Keys over HTTP: who is let in, what is refused, and that no key is ever shown."""

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from configs.app import KeysArgs, ServiceArgs
from configs.keys import KeyEntry, digest
from deployments.contracts.jobs import Caller
from deployments.contracts.usage import KeyJobs, KeyUsagesBody
from deployments.ingress.http.app import make_app
from deployments.ingress.keys import keyring as keyring_module
from deployments.ingress.keys.keyring import Keyring, make_keyring
from deployments.ingress.keys.quota import Quota
from tests.deployments.ingress.keyed import LATENT, Keys, Replica, entry, service
from tests.deployments.ingress.local_jobs import NO_JOBS, local_desk

GENERATIONS = "/v1/images/generations"
BALL = {"prompt": "a red ball"}
PAGES = {
    "metrics": ["/metrics"],
    "readyz": ["/readyz"],
    "docs": ["/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"],
    "playground": ["/", "/playground/main.js", "/playground/about"],
}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def app(
    *entries: KeyEntry, replica: Replica | None = None, keys: Keyring | None = None, **args: Any
) -> FastAPI:
    """The application over a replica that is done with everything at once."""
    if replica is None:
        replica = Replica()
        replica.go.set()
    named = KeysArgs(env="TCD_TEST_KEYS")  # not read: `keys` and `entries` are what it holds
    known = ServiceArgs(default_model="sd15", keys=named, **args)
    quota = Quota(keys or Keys(*entries))
    kept = service(replica, quota, known)
    return make_app(kept, local_desk(kept, known, NO_JOBS, quota.keys), known, quota)


def client(*entries: KeyEntry, **more: Any) -> TestClient:
    return TestClient(app(*entries, **more), base_url="http://service.test")


@asynccontextmanager
async def http(served: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(served)
    async with httpx.AsyncClient(transport=transport, base_url="http://service.test") as made:
        yield made


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def error_of(answer: Any) -> dict[str, str]:
    error: dict[str, str] = answer.json()["error"]
    return error


@pytest.mark.parametrize(
    "sent",
    [
        {},
        bearer(""),
        bearer("bob"),
        bearer("alice alice"),
        bearer("ALICE"),
        bearer(digest(b"alice")),
        bearer("k" * 10_000),
        bearer("\u00e9\u00ff"),
        {"authorization": "alice"},
        {"authorization": "Basic alice"},
        {"authorization": "Bearer"},
        {"x-api-key": "alice"},
    ],
)
def test_who_has_no_key_is_not_let_in(sent: dict[str, str]) -> None:
    served = client(entry("alice"))
    headers = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
    for method, path in (("POST", GENERATIONS), ("GET", "/v1/models"), ("GET", "/v1/nothing")):
        answer = served.request(method, path, headers=headers, json=BALL)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert error_of(answer)["code"] == "invalid_api_key"
    assert served.get("/healthz").status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_who_has_one_is(scheme: str) -> None:
    served = client(entry("alice"))
    answer = served.post(GENERATIONS, json=BALL, headers={"authorization": f"{scheme}  alice "})
    assert answer.status_code == 200, answer.text
    assert "www-authenticate" not in answer.headers


def test_no_body_is_read_of_who_has_no_key() -> None:
    async def run() -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            raise AssertionError("the body was asked for")

        async def send(message: Any) -> None:
            sent.append(message)

        await app(entry("alice"))(scope_of(GENERATIONS), receive, send)
        assert sent[0]["status"] == 401

    asyncio.run(run())


def scope_of(path: str, **headers: str) -> dict[str, Any]:
    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), *listed],
        "client": ("127.0.0.1", 1),
        "server": ("service.test", 80),
    }


def test_keys_are_compared_by_their_digests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparison sees a key, so that none can take longer the more of it is right; and the
    one of digests takes as long wherever they differ."""
    compared: list[tuple[Any, ...]] = []

    def compare(*digests: Any) -> bool:
        compared.append(digests)
        return really(*digests)

    really = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys = Keys(entry("alice"), entry("bob"))
    assert keys.find("alice") is not None
    assert compared == [(digest(b"alice"), digest(b"alice"))]
    assert keys.find("alicf") is None
    assert "alice" not in repr(vars(keys)).replace("name='alice'", "").replace("'alice':", "")


def test_what_a_key_may_not_ask() -> None:
    replica = Replica()
    replica.go.set()
    served = client(entry("alice", models=["sd15"], max_priority=2, running=2), replica=replica)
    for body, says in (
        ({"model": "sdxl"}, "key 'alice' may not ask model 'sdxl'; it may ask: sd15"),
        ({"model": "sdxl", "stream": True}, "it may ask: sd15"),
        ({"priority": 3}, "priority is 3; 2 at most with key 'alice'"),
        ({"n": 3}, "n is 3; key 'alice' may have 2 images at a time"),
    ):
        answer = served.post(GENERATIONS, json={**BALL, **body}, headers=bearer("alice"))
        assert answer.status_code == 403, answer.text
        assert says in error_of(answer)["message"]
        assert error_of(answer)["code"] == "forbidden"
        assert answer.headers["x-should-retry"] == "false"
    assert not replica.jobs


def test_the_catalogue_of_a_key() -> None:
    served = client(entry("alice", models=["sdxl"]), entry("bob"))
    for key, models in (("alice", ["sdxl"]), ("bob", ["sd15", "sdxl"])):
        answer = served.get("/v1/models", headers=bearer(key))
        assert [model["id"] for model in answer.json()["data"]] == models
        for model in ("sd15", "sdxl"):
            status = served.get(f"/v1/models/{model}", headers=bearer(key)).status_code
            assert status == (200 if model in models else 404)
    assert len(client().get("/v1/models").json()["data"]) == 2


def test_too_many_at_a_time() -> None:
    async def run() -> None:
        replica = Replica()
        served = app(entry("alice", running=2, waiting=1), entry("bob"), replica=replica)
        async with http(served) as asking:
            held = [
                asyncio.create_task(asking.post(GENERATIONS, json=BALL, headers=bearer("alice")))
                for _ in range(3)
            ]
            while len(replica.jobs) < 2:
                await asyncio.sleep(0.001)
            await settled()
            for stream in (False, True):
                body = {**BALL, "stream": stream}
                answer = await asking.post(GENERATIONS, json=body, headers=bearer("alice"))
                assert answer.status_code == 429
                assert error_of(answer)["code"] == "rate_limit_exceeded"
                assert int(answer.headers["retry-after-ms"]) > 0
                assert int(answer.headers["retry-after"]) > 0
            replica.go.set()
            answer = await asking.post(GENERATIONS, json=BALL, headers=bearer("bob"))
            assert answer.status_code == 200
            assert [(await task).status_code for task in held] == [200] * 3

    asyncio.run(run())


def test_too_much_work() -> None:
    served = client(entry("alice", work_per_minute=4 * LATENT))
    body = {**BALL, "n": 2}
    answers = [served.post(GENERATIONS, json=body, headers=bearer("alice")) for _ in "abc"]
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert 40_000 < int(answers[1].headers["retry-after-ms"]) <= 60_000


def usage_of(answer: Any) -> dict[str, Any]:
    return {usage.key: usage for usage in KeyUsagesBody.model_validate(answer.json()).data}


def test_usage() -> None:
    served = client(
        entry("alice", running=3, models=["sd15"], weight=2.0),
        entry("bob"),
        entry("root", admin=True),
    )
    body = {**BALL, "n": 2, "num_inference_steps": 3}
    assert served.post(GENERATIONS, json=body, headers=bearer("alice")).status_code == 200
    refused = {**BALL, "model": "sdxl"}
    assert served.post(GENERATIONS, json=refused, headers=bearer("alice")).status_code == 403
    own = usage_of(served.get("/v1/usage", headers=bearer("alice")))
    assert set(own) == {"alice"}
    assert own["alice"].model_dump() == {
        "object": "key.usage",
        "key": "alice",
        "admin": False,
        "requests": {"answered": 1, "refused": 1, "failed": 0, "cancelled": 0, "moderated": 0},
        "images": 2,
        "work": 2 * 3 * LATENT,
        "work_left": None,
        "running": 0,
        "waiting": 0,
        "limits": {
            "weight": 2.0,
            "running": 3,
            "waiting": None,
            "work_per_minute": None,
            "max_priority": None,
            "models": ["sd15"],
            "job_mb": None,
            "keep_s": None,
        },
        "jobs": {"unfinished": 0, "kept_bytes": 0},
    }
    everybody = usage_of(served.get("/v1/usage", headers=bearer("root")))
    assert list(everybody) == ["alice", "bob", "root"]
    assert everybody["alice"] == own["alice"]
    assert everybody["root"].admin
    assert served.get("/v1/usage").status_code == 401


def test_usage_without_keys() -> None:
    served = client()
    assert served.post(GENERATIONS, json=BALL).status_code == 200
    (usage,) = usage_of(served.get("/v1/usage")).values()
    assert (usage.key, usage.requests.answered, usage.limits.running) == ("", 1, None)


def test_where_models_run_is_told_to_an_admin() -> None:
    served = client(entry("alice"), entry("root", admin=True))
    assert served.get("/v1/replicas").status_code == 401
    refused = served.get("/v1/replicas", headers=bearer("alice"))
    assert refused.status_code == 403
    assert "alice" in refused.json()["error"]["message"]
    (model, *_) = served.get("/v1/replicas", headers=bearer("root")).json()["data"]
    assert (model["model"], model["availability"], model["replicas"]) == ("sd15", "ready", [])


def test_figures() -> None:
    served = client(entry("alice", models=["sd15"]), entry("bob"))
    served.post(GENERATIONS, json={**BALL, "n": 2}, headers=bearer("alice"))
    served.post(GENERATIONS, json={**BALL, "model": "sdxl"}, headers=bearer("alice"))
    text = served.get("/metrics").text
    for line in (
        'tcd_key_requests_total{key="alice",outcome="answered"} 1.0',
        'tcd_key_requests_total{key="alice",outcome="refused"} 1.0',
        'tcd_key_requests_total{key="alice",outcome="failed"} 0.0',
        'tcd_key_requests_total{key="bob",outcome="answered"} 0.0',
        'tcd_key_images_total{key="alice"} 2.0',
        f'tcd_key_work_total{{key="alice"}} {2.0 * 4 * LATENT}',
        'tcd_key_running{key="alice"} 0.0',
        'tcd_key_waiting{key="alice"} 0.0',
        "tcd_keys_config_errors 0.0",
    ):
        assert line in text.splitlines(), line


@pytest.mark.parametrize("prefix", ["", "/tcd"])
@pytest.mark.parametrize("guarded", [(), ("metrics",), ("docs", "readyz"), tuple(PAGES)])
def test_protected_pages(guarded: tuple[Any, ...], prefix: str) -> None:
    served = TestClient(
        app(entry("alice"), entry("root", admin=True), protect=guarded),
        base_url="http://service.test",
        root_path=prefix,
    )
    for name, paths in PAGES.items():
        for path in paths:
            path = prefix + path
            codes = [
                served.get(path, headers=headers).status_code
                for headers in ({}, bearer("nobody"), bearer("alice"), bearer("root"))
            ]
            assert codes == ([401, 401, 403, 200] if name in guarded else [200] * 4), path
    assert served.get(prefix + "/healthz").status_code == 200


def test_a_stream_that_its_reader_leaves() -> None:
    """Serve cancels the application's task; whatever it waits for then, nothing stays taken."""

    async def leave(sends: int) -> None:
        replica = Replica()
        if sends:
            replica.go.set()
        keys = Keys(entry("alice", running=1))
        quota = Quota(keys)
        known = ServiceArgs(default_model="sd15")
        desk: Any = None
        served = make_app(service(replica, quota, known), desk, known, quota)
        body = json.dumps({**BALL, "n": 1, "stream": True}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await asyncio.sleep(3600)
            return None

        async def send(message: Any) -> None:
            sent.append(message)
            if sends and len(sent) >= sends:
                await asyncio.sleep(3600)  # a reader that takes nothing more

        scope = scope_of(GENERATIONS, authorization="Bearer alice")
        task = asyncio.create_task(served(scope, receive, send))
        while len(sent) < max(sends, 1) or quota.usage_of("alice").running == 0:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await settled()
        usage = quota.usage_of("alice")
        assert (usage.running, usage.waiting) == (0, 0)
        assert usage.requests.cancelled == 1

    asyncio.run(leave(0))  # while it waits for the model
    asyncio.run(leave(1))  # while the first bytes go out
    asyncio.run(leave(2))  # while an event goes out


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(json.dumps([entry("alice").model_dump(include={"name", "sha256"})]))
    return path


def test_a_key_that_is_taken_away(keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring_module, "LOOK_S", 0.0)
    args = ServiceArgs(keys=KeysArgs(file=str(keys_file)))
    served = client(keys=make_keyring(args))

    def status(key: str) -> int:
        return served.get("/v1/usage", headers=bearer(key)).status_code

    assert (status("alice"), status("bob")) == (200, 401)
    keys_file.write_text(json.dumps([entry("bob").model_dump(include={"name", "sha256"})]))
    assert (status("alice"), status("bob")) == (401, 200)
    keys_file.write_text("- {name: carol}")
    assert (status("alice"), status("bob")) == (401, 200)
    assert "tcd_keys_config_errors 1.0" in served.get("/metrics").text
    keys_file.write_text(json.dumps([entry("alice").model_dump(include={"name", "sha256"})]))
    assert (status("alice"), status("bob")) == (200, 401)
    assert "tcd_keys_config_errors 0.0" in served.get("/metrics").text


def test_ten_keys() -> None:
    names = [f"caller-{number}" for number in range(10)]

    async def run() -> None:
        replica = Replica()
        weights = {name: 1.0 + number for number, name in enumerate(names)}
        served = app(
            *(entry(name, weight=weight, running=2) for name, weight in weights.items()),
            entry("root", admin=True),
            replica=replica,
        )
        async with http(served) as asking:
            calls = [
                asyncio.create_task(asking.post(GENERATIONS, json=BALL, headers=bearer(name)))
                for name in names
                for _ in range(4)
            ]
            while len(replica.jobs) < 20:
                await asyncio.sleep(0.001)
            await settled()
            jobs = [job.caller for job in replica.jobs]
            assert sorted(jobs, key=repr) == sorted(
                (Caller(name, weights[name]) for name in names for _ in "ab"), key=repr
            )
            replica.go.set()
            assert {(await call).status_code for call in calls} == {200}
            shown = usage_of(await asking.get("/v1/usage", headers=bearer("root")))
            assert [shown[name].requests.answered for name in names] == [4] * 10

    asyncio.run(run())


def test_neither_key_nor_hash_is_shown(
    keys_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring_module, "LOOK_S", 0.0)
    secret, plain = "tcd-the-secret-of-alice", "plain-secret"
    listed = [{"name": "alice", "sha256": digest(secret.encode()), "admin": True, "running": 1}]
    keys_file.write_text(json.dumps(listed))
    monkeypatch.setenv("TCD_TEST_KEYS", plain)
    args = ServiceArgs(keys=KeysArgs(file=str(keys_file)), api_keys_env="TCD_TEST_KEYS")
    shown: list[str] = []
    with caplog.at_level(logging.DEBUG):
        replica = Replica(answers=[RuntimeError("a bug")])
        replica.go.set()
        served = TestClient(
            app(keys=make_keyring(args), replica=replica), raise_server_exceptions=False
        )
        for key in (secret, plain, f"wrong {secret}"):
            for body in ({}, {"n": 2}, {"model": "none"}, {"priority": 99}, {"stream": True}):
                answer = served.post(GENERATIONS, json={**BALL, **body}, headers=bearer(key))
                shown += [answer.text, str(answer.headers)]
            for path in ("/v1/usage", "/v1/models", "/metrics", "/openapi.json", "/v1/nothing"):
                answer = served.get(path, headers=bearer(key))
                shown += [answer.text, str(answer.headers)]
        keys_file.write_text(json.dumps([{**listed[0], "running": 0}]))
        shown.append(served.get("/v1/usage", headers=bearer(secret)).text)
    assert "running" in caplog.text  # what is wrong with the file is told
    everything = caplog.text + "".join(shown)
    assert "'alice'" in everything
    for hidden in (secret, plain, digest(secret.encode()), digest(plain.encode())):
        assert hidden not in everything
    assert not re.search("[0-9a-f]{64}", caplog.text)


@pytest.fixture
def video_client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[TestClient, Replica]]:
    """Videos of three keys, of which one is an admin's; its loop runs as long as the test."""
    listed = [
        {"name": e.name, "sha256": e.sha256, "admin": e.admin, "running": e.running}
        | ({} if e.waiting is None else {"waiting": e.waiting})
        for e in (entry("alice", running=1, waiting=0), entry("bob"), entry("root", admin=True))
    ]
    monkeypatch.setenv("TCD_TEST_KEYS", json.dumps(listed))
    args = ServiceArgs(default_model="sd15", keys=KeysArgs(env="TCD_TEST_KEYS"), max_videos=2)
    replica = Replica()

    quota = Quota(make_keyring(args))
    kept = service(replica, quota, args)
    desk = local_desk(kept, args, tmp_path, quota.keys)
    with TestClient(make_app(kept, desk, args, quota)) as served:
        yield served, replica


def test_a_job_waits_where_a_request_is_refused(
    video_client: tuple[TestClient, Replica],
) -> None:
    """At the limit of a key that may have one image at a time, and none waiting."""
    served, replica = video_client
    body, headers = {**BALL, "num_frames": 2}, {**bearer("alice"), "idempotency-key": "same"}
    first = served.post("/v1/videos", json=body, headers=headers).json()["id"]
    again = served.post("/v1/videos", json=body, headers=headers)
    assert (again.status_code, again.json().get("id")) == (200, first)
    _reached(replica, 1)
    later = {**BALL, "seed": 7, "async": True}
    second = served.post(GENERATIONS, json=later, headers=bearer("alice")).json()["id"]
    seen = _seen(served, second, "in_progress")
    assert seen["queue_position"] is None
    assert served.post(GENERATIONS, json=BALL, headers=bearer("alice")).status_code == 429
    assert {job.num_frames for job in replica.jobs} == {2}
    replica.go.set()
    usage = usage_of(served.get("/v1/usage", headers=bearer("alice")))["alice"]
    assert _seen(served, second, "completed")["result"]["data"][0]["seed"] == 7
    _seen(served, first, "completed")
    after = usage_of(served.get("/v1/usage", headers=bearer("root")))
    assert usage.jobs is not None
    assert usage.jobs.unfinished <= 2
    assert after["alice"].jobs is not None
    assert (after["alice"].jobs.unfinished, after["bob"].jobs) == (0, KeyJobs())
    assert after["alice"].jobs.kept_bytes > 100


def _seen(served: TestClient, job_id: str, status: str) -> dict[str, Any]:
    """A job of alice's, as soon as it stands so."""
    until = time.monotonic() + 30
    while True:
        card: dict[str, Any] = served.get(f"/v1/jobs/{job_id}", headers=bearer("alice")).json()
        if card["status"] == status:
            return card
        assert time.monotonic() < until, card
        time.sleep(0.02)


def _reached(replica: Replica, count: int) -> None:
    """Returns when so many jobs have come to the model."""
    until = time.monotonic() + 30
    while len(replica.jobs) < count:
        assert time.monotonic() < until, replica.jobs
        time.sleep(0.02)


def test_max_videos_are_shared_between_keys(video_client: tuple[TestClient, Replica]) -> None:
    """Of two, bob may have both; whoever comes then finds a share of one, and bob none."""
    served, _ = video_client
    body = {**BALL, "num_frames": 2}

    def ask(name: str) -> tuple[int, str]:
        answer = served.post("/v1/videos", json=body, headers=bearer(name))
        return answer.status_code, answer.json().get("id", "")

    taken = [ask("bob"), ask("bob")]
    assert ask("bob")[0] == 429
    taken.append(ask("alice"))
    assert ask("bob")[0] == 429
    taken.append(ask("root"))
    assert [status for status, _ in taken] == [200] * 4
    assert ask("root")[0] == 429  # it has its share, and twice as many as there are is all
    for _, video in taken:
        served.delete(f"/v1/videos/{video}", headers=bearer("root"))


def test_videos_are_of_who_asked_for_them(video_client: tuple[TestClient, Replica]) -> None:
    served, replica = video_client
    body = {**BALL, "num_frames": 2}
    alice, bob, root = bearer("alice"), bearer("bob"), bearer("root")
    keyed = {"idempotency-key": "same"}
    first = served.post("/v1/videos", json=body, headers={**bob, **keyed}).json()["id"]
    assert served.post("/v1/videos", json=body, headers={**bob, **keyed}).json()["id"] == first
    second = served.post("/v1/videos", json=body, headers={**alice, **keyed}).json()["id"]
    assert second != first
    answer = served.post("/v1/videos", json=body, headers=alice)  # it may have one, and none waits
    assert answer.status_code == 429, answer.text
    for key, ids in ((alice, [second]), (bob, [first]), (root, [second, first])):
        found = served.get("/v1/videos", headers=key).json()["data"]
        assert [video["id"] for video in found] == ids
        for video in (first, second):
            path = f"/v1/videos/{video}"
            assert served.get(path, headers=key).status_code == (200 if video in ids else 404)
    for method, path in (("POST", "/cancel"), ("GET", "/content"), ("DELETE", "")):
        answer = served.request(method, f"/v1/videos/{first}{path}", headers=alice)
        assert answer.status_code == 404
    _reached(replica, 2)
    assert {job.caller.name for job in replica.jobs} == {"alice", "bob"}
    for video, key in ((first, bob), (second, root)):
        assert served.post(f"/v1/videos/{video}/cancel", headers=key).json()["status"] == (
            "cancelled"
        )
    assert served.post("/v1/videos", json=body, headers=alice).status_code == 200
    served.delete(f"/v1/videos/{first}", headers=root)
