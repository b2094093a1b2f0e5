"""`/v1/jobs` and images with `async: true`, on the running service."""

import base64
import io
import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from ray import serve

from deployments.contracts.errors import Cancelled, Conflict, NotFound
from deployments.contracts.job_cards import JobCard, JobResult
from deployments.contracts.jobs import Caller, ImageRequest, VideoRequest
from tests.deployments.ingress.images import png
from tests.serving import Served

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
BALL: dict[str, Any] = {
    "model": "sd15",
    "prompt": "a big red ball on the left, in the snow",
    "size": "64x64",
    "num_inference_steps": 4,
    "seed": 7,
}
LONG = {**BALL, "num_inference_steps": 50, "n": 4, "size": "256x256"}
LEVELS = 2
PICTURE = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)


def post(served: Served, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(served.url + GENERATIONS, json=body, headers=headers, timeout=120)


def ended(served: Served, job_id: str, timeout_s: float = 120) -> dict[str, Any]:
    until = time.monotonic() + timeout_s
    while True:
        card: dict[str, Any] = httpx.get(f"{served.url}/v1/jobs/{job_id}", timeout=30).json()
        if card["status"] in ("completed", "failed", "cancelled"):
            return card
        assert time.monotonic() < until, card
        time.sleep(0.05)


def close(one: str | bytes, other: str | bytes) -> bool:
    """Whether two files in base64 are the same picture: alone and in a crowd."""
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))).astype(np.int16)
        for file in (one, other)
    ]
    return bool(np.abs(pixels[0] - pixels[1]).max() <= LEVELS)


def images_made(served: Served) -> float:
    """By sd15's engines; the figures come a little later."""
    seen = [-1.0]
    while len(seen) < 4 or len(set(seen[-4:])) > 1:
        time.sleep(1)
        seen.append(served.engine_figure("images_total", "sd15"))
    return seen[-1]


def events_of(answer: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))


def test_images_come_later_as_they_would_at_once(served: Served) -> None:
    body = {**BALL, "n": 2, "metadata": False}
    at_once = post(served, body).json()
    accepted = post(served, {**body, "async": True})
    assert accepted.status_code == 202
    assert accepted.headers["openai-poll-after-ms"] in ("500", "1000")
    card = accepted.json()
    assert (card["object"], card["kind"], card["model"]) == ("job", "image", "sd15")
    assert card["prompt"] == BALL["prompt"]
    done = ended(served, card["id"])
    assert (done["status"], done["progress"], done["queue_position"]) == ("completed", 100, None)
    assert done["created_at"] <= done["started_at"] <= done["completed_at"] < done["expires_at"]
    result = done["result"]
    assert {k: result[k] for k in ("size", "usage", "quality", "output_format", "ignored")} == {
        k: at_once[k] for k in ("size", "usage", "quality", "output_format", "ignored")
    }
    for index, (later, now) in enumerate(zip(result["data"], at_once["data"], strict=True)):
        assert later["seed"] == now["seed"] == 7 + index
        found = httpx.get(later["url"])
        assert found.headers["content-type"] == "image/png"
        assert close(base64.b64encode(found.content), now["b64_json"])
        content = f"{served.url}/v1/jobs/{card['id']}/content?index={index}"
        assert httpx.get(content).content == found.content
    assert httpx.get(content.replace("index=1", "index=2")).status_code == 404
    wrong = result["data"][0]["url"].rpartition("/")[0] + "/" + "A" * 43 + ".png"
    assert httpx.get(wrong).status_code == 404


def test_images_in_the_answer(served: Served) -> None:
    body = {**BALL, "async": True, "response_format": "b64_json", "output_format": "webp"}
    done = ended(served, post(served, body).json()["id"])
    (image,) = done["result"]["data"]
    assert Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).size == (64, 64)
    listed = httpx.get(f"{served.url}/v1/jobs?limit=1").json()["data"][0]
    assert listed["id"] == done["id"]
    assert listed["result"]["data"][0]["b64_json"] is None


def test_an_edit_with_its_pictures(served: Served) -> None:
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:32] = 255
    fields = {k: str(v) for k, v in BALL.items()} | {"metadata": "false"}
    files = {"image": ("a.png", png(PICTURE)), "mask": ("m.png", png(mask))}
    at_once = httpx.post(served.url + EDITS, data=fields, files=files, timeout=60).json()
    later = httpx.post(
        served.url + EDITS, data={**fields, "async": "true"}, files=files, timeout=60
    )
    assert later.status_code == 202, later.text
    done = ended(served, later.json()["id"])
    found = httpx.get(done["result"]["data"][0]["url"]).content
    assert close(base64.b64encode(found), at_once["data"][0]["b64_json"])


def test_what_is_counted_of_jobs(served: Served) -> None:
    job_id = post(served, {**BALL, "async": True}).json()["id"]
    stored = sum(
        len(httpx.get(image["url"]).content) for image in ended(served, job_id)["result"]["data"]
    )
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    listed = httpx.get(f"{served.url}/v1/jobs?kind=image&limit=100").json()["data"]
    completed = sum(job["status"] == "completed" for job in listed)
    assert float(figures["tcd_jobs_storage_up"]) == 1
    assert float(figures['tcd_jobs{kind="image",status="completed"}']) == completed > 0
    assert float(figures['tcd_jobs_stored_bytes{kind="image"}']) >= stored > 0


def test_its_events(served: Served) -> None:
    body = {**BALL, "async": True, "num_inference_steps": 40, "partial_images": 2}
    job_id = post(served, {**body, "size": "256x256"}).json()["id"]
    seen: list[tuple[str, dict[str, Any]]] = []
    with httpx.stream("GET", f"{served.url}/v1/jobs/{job_id}/events", timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        seen.extend(events_of(answer))
    kinds = [kind for kind, _ in seen]
    assert kinds[0] == "job.progress"
    assert kinds[-1] == "job.completed"
    assert set(kinds) == {"job.progress", "job.partial_image", "job.completed"}
    assert all(data["type"] == kind for kind, data in seen)
    progress = [data["job"]["progress"] for kind, data in seen if "job" in data]
    assert progress == sorted(progress)
    cards = [data["job"] for kind, data in seen if "job" in data]
    assert all(one != other for one, other in itertools.pairwise(cards))
    partial = [data for kind, data in seen if kind == "job.partial_image"]
    assert [image["partial_image_index"] for image in partial] == [0, 1]
    assert Image.open(io.BytesIO(base64.b64decode(partial[0]["b64_json"]))).size == (256, 256)
    # Whoever comes late is told how it ended.
    with httpx.stream("GET", f"{served.url}/v1/jobs/{job_id}/events", timeout=60) as answer:
        assert [kind for kind, _ in events_of(answer)][-1] == "job.completed"


def test_cancel_and_delete(served: Served) -> None:
    running = post(served, {**LONG, "async": True}).json()["id"]
    cancelled = httpx.post(f"{served.url}/v1/jobs/{running}/cancel", timeout=30).json()
    assert cancelled["status"] == "cancelled"
    assert ended(served, running)["status"] == "cancelled"
    assert httpx.get(f"{served.url}/v1/jobs/{running}/content").status_code == 400
    done = ended(served, post(served, {**BALL, "async": True}).json()["id"])
    url = done["result"]["data"][0]["url"]
    assert httpx.get(url).status_code == 200
    for job_id in (running, done["id"]):
        told = httpx.delete(f"{served.url}/v1/jobs/{job_id}", timeout=30).json()
        assert told == {"id": job_id, "object": "job.deleted", "deleted": True}
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/events")):
            answer = httpx.request(method, f"{served.url}/v1/jobs/{job_id}{path}", timeout=30)
            assert answer.status_code == 404, (method, path)
    assert httpx.get(url).status_code == 404


def test_a_video_is_a_job_too(served: Served) -> None:
    body = {**BALL, "num_frames": 4, "output_format": "webp"}
    video = httpx.post(f"{served.url}/v1/videos", json=body, timeout=60).json()
    done = ended(served, video["id"])
    assert (done["kind"], done["result"]) == ("video", None)
    assert done["video"] == httpx.get(f"{served.url}/v1/videos/{video['id']}").json()
    content = httpx.get(f"{served.url}/v1/jobs/{video['id']}/content").content
    assert content == httpx.get(f"{served.url}/v1/videos/{video['id']}/content").content
    image = post(served, {**BALL, "async": True}).json()["id"]
    assert httpx.get(f"{served.url}/v1/videos/{image}").status_code == 404
    listed = httpx.get(f"{served.url}/v1/jobs?kind=video&limit=100").json()["data"]
    assert video["id"] in [job["id"] for job in listed]
    assert {job["kind"] for job in listed} == {"video"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"stream": True}, "async"),
        ({"async": "perhaps"}, "async"),
        ({"model": "nope"}, "model"),
        ({"loras": [{"name": "nope"}]}, "loras"),
        ({"n": 1000}, "n"),
        ({"controls": [{"type": "canny", "image": "data:image/png;base64,AAAA"}]}, None),
    ],
)
def test_what_is_wrong_is_said_at_once(
    served: Served, change: dict[str, Any], param: str | None
) -> None:
    answer = post(served, {**BALL, "async": True, **change})
    assert answer.status_code in (400, 404), answer.text
    assert param in (None, answer.json()["error"]["param"])


def test_a_page_of_jobs(served: Served) -> None:
    ids = [post(served, {**BALL, "async": True}).json()["id"] for _ in range(3)]
    for job_id in ids:
        ended(served, job_id)
    page = httpx.get(f"{served.url}/v1/jobs?limit=2").json()
    assert [job["id"] for job in page["data"]] == [ids[2], ids[1]]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[2], ids[1], True)
    after = httpx.get(f"{served.url}/v1/jobs?limit=1&after={ids[1]}").json()
    assert [job["id"] for job in after["data"]] == [ids[0]]
    assert httpx.get(f"{served.url}/v1/jobs?after=nope").status_code == 404


def test_copies_of_a_request_get_one_answer(served: Served) -> None:
    """Also while the first is under way, and without a seed."""
    body = {**BALL, "num_inference_steps": 20}
    del body["seed"]
    before = images_made(served)
    with ThreadPoolExecutor(10) as threads:
        asked = [threads.submit(post, served, body, **{"idempotency-key": "k1"}) for _ in range(10)]
        answers = [each.result() for each in asked]
    assert {answer.status_code for answer in answers} == {200}, answers[0].text
    assert len({answer.content for answer in answers}) == 1
    assert post(served, body, **{"idempotency-key": "k1"}).content == answers[0].content
    assert images_made(served) == before + 1


def test_another_request_of_the_same_key(served: Served) -> None:
    keyed = {"Idempotency-Key": "k2"}
    client = served.openai(max_retries=2)
    asked: dict[str, Any] = {"model": "sd15", "size": "64x64", "extra_headers": keyed}
    first = client.images.generate(prompt="a red ball", **asked)
    assert client.images.generate(prompt="a red ball", **asked) == first
    with pytest.raises(openai.ConflictError, match="came with another request") as refused:
        client.images.generate(prompt="a blue ball", **asked)
    assert refused.value.param == "idempotency-key"
    answer = post(served, {**BALL, "async": True}, **{"idempotency-key": "k2"})
    assert answer.status_code == 409


def test_a_stream_that_is_asked_again(served: Served) -> None:
    body = {**BALL, "stream": True, "partial_images": 1, "n": 2, "metadata": False}
    plain = post(served, body)
    streams = [post(served, body, **{"idempotency-key": "k3"}) for _ in range(2)]
    assert {answer.headers["content-type"] for answer in streams} == {plain.headers["content-type"]}

    def completed(answer: httpx.Response) -> dict[int, dict[str, Any]]:
        found = [data for kind, data in events_of(answer) if kind.endswith(".completed")]
        return {data["image_index"]: data for data in found}

    images = [completed(answer) for answer in (plain, *streams)]
    assert images[1] == images[2]
    for index in range(2):
        assert close(images[1][index]["b64_json"], images[0][index]["b64_json"])
        for field in ("seed", "size", "quality", "output_format", "type"):
            assert images[1][index][field] == images[0][index][field], field
    assert sum(images[1][i]["usage"]["denoising_steps"] for i in range(2)) == 8


def test_a_failure_is_the_same_when_it_is_asked_again(served: Served) -> None:
    body = {**LONG, "timeout_s": 0.05}
    answers = [post(served, body, **{"idempotency-key": "k4"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [408, 408]
    assert post(served, {**body, "prompt": "b"}, **{"idempotency-key": "k4"}).status_code == 409


def test_by_handle(served: Served) -> None:
    tcd: Any = serve.get_app_handle("tcd")
    request = ImageRequest("a red ball", model="sd15", width=64, height=64, n=2, seed=3)
    direct = tcd.generate.remote(request).result(timeout_s=120)
    card: JobCard = tcd.submit.remote(request, idempotency_key="h1").result(timeout_s=60)
    assert tcd.submit.remote(request, idempotency_key="h1").result(timeout_s=60).id == card.id
    cards: list[JobCard] = list(tcd.options(stream=True).events.remote(card.id))
    assert cards[-1].status == "completed"
    result: JobResult = tcd.result.remote(card.id).result(timeout_s=120)
    for file, pixels in zip(result.files, direct.images, strict=True):
        assert file is not None
        assert close(base64.b64encode(file), base64.b64encode(png(pixels)))
    with pytest.raises(Exception, match="another request") as conflict:
        tcd.submit.remote(ImageRequest("b", model="sd15"), idempotency_key="h1").result(
            timeout_s=60
        )
    assert isinstance(conflict.value.cause, Conflict)  # type: ignore[attr-defined]
    video = VideoRequest("a", model="sd15", width=64, height=64, num_frames=24, seed=0)
    made: JobCard = tcd.submit.remote(video, video_format="webp").result(timeout_s=60)
    stopped: JobCard = tcd.cancel.remote(made.id).result(timeout_s=60)
    assert stopped.status == "cancelled"
    with pytest.raises(Exception, match="was cancelled") as cancelled:
        tcd.result.remote(made.id).result(timeout_s=60)
    assert isinstance(cancelled.value.cause, Cancelled)  # type: ignore[attr-defined]
    for method in (tcd.result, tcd.delete):
        with pytest.raises(Exception, match="does not exist") as unknown:
            method.remote(card.id, Caller("alice")).result(timeout_s=60)
        assert isinstance(unknown.value.cause, NotFound)  # type: ignore[attr-defined]
    tcd.delete.remote(card.id).result(timeout_s=60)
    assert httpx.get(f"{served.url}/v1/jobs/{card.id}").status_code == 404


def test_pixels_of_a_handle_are_kept_as_they_are(served: Served) -> None:
    tcd: Any = serve.get_app_handle("tcd")
    request = ImageRequest(
        "a ball", model="sd15", width=64, height=64, image=PICTURE, strength=0.5, seed=1
    )
    direct = tcd.generate.remote(request).result(timeout_s=120)
    card = tcd.submit.remote(request).result(timeout_s=60)
    (file,) = tcd.result.remote(card.id).result(timeout_s=120).files
    assert close(base64.b64encode(file), base64.b64encode(png(direct.images[0])))
