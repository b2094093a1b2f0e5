"""OpenAI's Files and Batch API, through the official client, on the running service."""

import base64
import io
import json
import time
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import Batch
from PIL import Image

from tests.deployments.ingress.images import png
from tests.deployments.ingress.test_jobs import BALL, close
from tests.serving import Served

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
PICTURE = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
URL = "data:image/png;base64," + base64.b64encode(png(PICTURE)).decode()


def line(name: str, url: str = GENERATIONS, **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": {**BALL, **body}}


def uploaded(client: openai.OpenAI, lines: list[Any]) -> str:
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    return client.files.create(file=("my lines.jsonl", text.encode()), purpose="batch").id


def begun(client: openai.OpenAI, lines: list[Any], endpoint: Any = GENERATIONS) -> Batch:
    return client.batches.create(
        input_file_id=uploaded(client, lines), endpoint=endpoint, completion_window="24h"
    )


def ended(client: openai.OpenAI, batch: Batch, timeout_s: float = 120) -> Batch:
    until = time.monotonic() + timeout_s
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert time.monotonic() < until, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def answers(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    assert file_id is not None
    lines = client.files.content(file_id).text.splitlines()
    return {answer["custom_id"]: answer for answer in map(json.loads, lines)}


def test_files(served: Served) -> None:
    client = served.openai()
    file_id = uploaded(client, [line("a")])
    card = client.files.retrieve(file_id)
    assert (card.filename, card.purpose, card.status) == ("my lines.jsonl", "batch", "processed")
    assert card.bytes == len(json.dumps(line("a")))
    assert json.loads(client.files.content(file_id).text) == line("a")
    assert client.files.list(limit=1).data[0] == card
    assert client.files.list(limit=10_000).data[0] == card
    with pytest.raises(openai.BadRequestError, match="10000"):
        client.files.list(limit=10_001)
    assert client.files.delete(file_id).deleted
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.files.retrieve(file_id)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=b"x", purpose="fine-tune")
    assert file_id not in [job["id"] for job in httpx.get(f"{served.url}/v1/jobs").json()["data"]]


def test_files_that_expire_sooner(served: Served) -> None:
    client = served.openai()
    text = json.dumps(line("a")).encode()
    hour: Any = {"anchor": "created_at", "seconds": 3600}
    kept = client.files.create(file=("a.jsonl", text), purpose="batch", expires_after=hour)
    assert kept.expires_at == kept.created_at + 3600
    month: Any = {"anchor": "created_at", "seconds": 2_592_000}
    kept = client.files.create(file=("a.jsonl", text), purpose="batch", expires_after=month)
    assert kept.expires_at == kept.created_at + 86_400  # what the service keeps
    batch = client.batches.create(
        input_file_id=kept.id,
        endpoint=GENERATIONS,  # type: ignore[arg-type]
        completion_window="24h",
        output_expires_after=hour,
    )
    output = client.files.retrieve(ended(client, batch).output_file_id or "")
    assert output.expires_at == output.created_at + 3600
    with pytest.raises(openai.BadRequestError, match="seconds"):
        client.files.create(
            file=("a.jsonl", text),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 5},
        )


def test_a_batch(served: Served) -> None:
    client = served.openai()
    lines = [line(f"ball {seed}", seed=seed) for seed in range(5)]
    lines += [line("two", n=2, metadata=False), line("wrong", num_inference_steps=1000)]
    lines += [line("unknown", model="nope"), line("inline", response_format="b64_json")]
    batch = client.batches.create(
        input_file_id=uploaded(client, lines),
        endpoint=GENERATIONS,  # type: ignore[arg-type]
        completion_window="24h",
        metadata={"for": "a test"},
    )
    assert batch.status in ("validating", "in_progress")
    done = ended(client, batch)
    assert (done.status, done.metadata, done.errors) == ("completed", {"for": "a test"}, None)
    assert done.request_counts is not None
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (9, 6, 3)
    good, bad = answers(client, done.output_file_id), answers(client, done.error_file_id)
    assert list(good) == [f"ball {seed}" for seed in range(5)] + ["two"]
    for seed in range(5):
        response = good[f"ball {seed}"]["response"]
        assert response["status_code"] == 200
        (image,) = response["body"]["data"]
        assert image["seed"] == seed
        assert httpx.get(image["url"]).headers["content-type"] == "image/png"
    asked: Any = {**BALL, "n": 2}
    now = httpx.post(served.url + GENERATIONS, json={**asked, "metadata": False}, timeout=60).json()
    for later, at_once in zip(good["two"]["response"]["body"]["data"], now["data"], strict=True):
        file = httpx.get(later["url"]).content
        assert close(base64.b64encode(file), at_once["b64_json"])
    assert {name: answer["response"]["status_code"] for name, answer in bad.items()} == {
        "wrong": 400,
        "unknown": 404,
        "inline": 400,
    }
    ids = [answer["response"]["request_id"] for answer in (*good.values(), *bad.values())]
    assert len(set(ids)) == 9
    assert all(one.startswith("image_") for one in ids), "also of lines that were never jobs"
    wrong = bad["wrong"]["response"]["body"]["error"]
    assert wrong["param"] == "num_inference_steps"
    assert client.batches.list(limit=1).data[0].id == batch.id
    assert all(
        job["kind"] in ("image", "video") and not job["prompt"].startswith("ball ")
        for job in httpx.get(f"{served.url}/v1/jobs?limit=100").json()["data"]
    )


def test_its_jobs_and_that_it_is_deleted_with_them(served: Served) -> None:
    client = served.openai()
    lines = [line("a"), line("deep", x=1)]
    text = json.dumps(lines[1]).replace('"x": 1', '"x": ' + "[" * 100_000 + "]" * 100_000)
    broken = ended(client, begun(client, [lines[0], text]))
    assert broken.errors is not None
    assert broken.errors.data is not None
    assert [(e.line, e.message) for e in broken.errors.data] == [
        (2, "this line is nested too deep")
    ]
    batch = begun(client, lines[:1])
    url, jobs = f"{served.url}/v1/batches/{batch.id}", f"{served.url}/v1/jobs"
    refused = httpx.delete(url, timeout=30)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "batch_id")
    done = ended(client, batch)
    (job,) = httpx.get(jobs, params={"batch": batch.id}).json()["data"]
    assert (job["status"], job["expires_at"]) == ("completed", None)
    (image,) = job["result"]["data"]
    assert httpx.get(image["url"]).status_code == 200
    answer = httpx.delete(url, timeout=30)
    assert answer.json() == {"id": batch.id, "object": "batch", "deleted": True}
    assert httpx.get(image["url"]).status_code == 404
    assert answers(client, done.output_file_id)["a"]["response"]["status_code"] == 200
    for gone, param in ((url, "batch_id"), (f"{jobs}?batch={batch.id}", "batch")):
        answer = httpx.get(gone)
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, param)


def test_edits(served: Served) -> None:
    client = served.openai()
    lines = [line("edit", EDITS, image=URL, strength=0.5, metadata=False)]
    done = ended(client, begun(client, lines, EDITS))
    (image,) = answers(client, done.output_file_id)["edit"]["response"]["body"]["data"]
    fields = {k: str(v) for k, v in BALL.items()} | {"strength": "0.5", "metadata": "false"}
    files = {"image": ("a.png", png(PICTURE))}
    now = httpx.post(served.url + EDITS, data=fields, files=files, timeout=60).json()
    file = httpx.get(image["url"]).content
    assert close(base64.b64encode(file), now["data"][0]["b64_json"])


def test_a_file_that_is_wrong(served: Served) -> None:
    client = served.openai()
    lines = [
        line("a"),
        "{",
        line("a"),
        line("b", EDITS),
        {**line("c"), "method": "GET"},
        {"custom_id": "d"},
    ]
    done = ended(client, begun(client, lines))
    assert done.status == "failed"
    assert done.errors is not None
    assert done.errors.data is not None
    assert [(e.code, e.line) for e in done.errors.data] == [
        ("invalid_json_line", 2),
        ("duplicate_custom_id", 3),
        ("mismatched_url", 4),
        ("invalid_line", 5),
        ("invalid_line", 6),
    ]
    assert (done.output_file_id, done.error_file_id) == (None, None)
    empty = ended(client, begun(client, [" "]))
    assert empty.errors is not None
    assert empty.errors.data is not None
    assert empty.errors.data[0].code == "empty_file"


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"input_file_id": "file-none"}, 404, "input_file_id"),
        ({"endpoint": "/v1/chat/completions"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
    ],
)
def test_what_is_wrong_is_said_at_once(
    served: Served, change: dict[str, Any], status: int, param: str
) -> None:
    file_id = uploaded(served.openai(), [line("a")])
    body = {"input_file_id": file_id, "endpoint": GENERATIONS, "completion_window": "24h"}
    answer = httpx.post(f"{served.url}/v1/batches", json=body | change, timeout=30)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


def test_cancel(served: Served) -> None:
    client = served.openai()
    lines = [line(str(n), num_inference_steps=50, size="256x256", seed=n) for n in range(40)]
    batch = begun(client, lines)
    time.sleep(1)
    until = time.monotonic() + 60
    while client.batches.retrieve(batch.id).request_counts.completed < 2:  # type: ignore[union-attr]
        assert time.monotonic() < until
        time.sleep(0.2)
    stopped = client.batches.cancel(batch.id)
    assert stopped.status == "cancelling"
    assert stopped.cancelling_at is not None
    done = ended(client, stopped)
    assert done.status == "cancelled"
    assert done.cancelled_at is not None
    assert client.batches.cancel(batch.id) == done
    good, bad = answers(client, done.output_file_id), answers(client, done.error_file_id)
    assert done.request_counts is not None
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (40, len(good), len(bad))
    assert len(good) >= 2
    assert good.keys() | bad.keys() == {str(n) for n in range(40)}
    for answer in good.values():
        url = answer["response"]["body"]["data"][0]["url"]
        assert Image.open(io.BytesIO(httpx.get(url).content)).size == (256, 256)
    assert {answer["error"]["code"] for answer in bad.values()} == {"batch_cancelled"}
    assert served.engine_figure("images_total", "sd15")  # the figures below are there
    while served.engine_figure("pending_images", "sd15"):
        assert time.monotonic() < until
        time.sleep(0.2)
