"""Progress and interruption, of the caller's own requests alone; keys as A1111's clients send
them."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.contracts.errors import GenerationFailed
from deployments.contracts.jobs import (
    Completed,
    FailedImage,
    FinishedImage,
    ImageJob,
    Progress,
    StreamEvent,
)
from deployments.contracts.refusal import Refusal
from tests.deployments.ingress.a1111.standins import client, refusal
from tests.deployments.ingress.images import png
from tests.deployments.ingress.keyed import NO_USAGE, SIDE, Replica, entry

TXT2IMG, PROGRESS = "/sdapi/v1/txt2img", "/sdapi/v1/progress"
INTERRUPT = "/sdapi/v1/interrupt"


class Stepwise(Replica):
    """Draws the first of its images at once, half of the second, and the rest when told to go."""

    async def _stream(self, job: ImageJob) -> AsyncIterator[StreamEvent | Refusal]:
        self.jobs.append(job)
        pixels, latents = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((4, 8, 8), np.float32)
        first, *others = range(len(job.seeds))
        if others:
            yield Progress(first, 4, 4)
            yield FinishedImage(first, job.seeds[first], pixels, latents)
        yield Progress(len(others), 2, 4)
        await self.go.wait()
        for index in others or [first]:
            yield FinishedImage(index, job.seeds[index], pixels, latents)
        yield Completed("sd15", NO_USAGE)


class Failing(Replica):
    """Fails the first image of each job."""

    async def _stream(self, job: ImageJob) -> AsyncIterator[StreamEvent | Refusal]:
        pixels, latents = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((4, 8, 8), np.float32)
        yield FailedImage(0, GenerationFailed("not a number"))
        for index, seed in list(enumerate(job.seeds))[:0:-1]:  # the last one is done first
            yield FinishedImage(index, seed, pixels + index, latents)
        yield Completed("sd15", NO_USAGE)


def basic(key: str, user: str = "anyone") -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()}


@asynccontextmanager
async def asking(replica: Replica, *keys: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(client(replica, *keys).app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service.test") as http:
        yield http


async def drawing(http: httpx.AsyncClient, **headers: Any) -> dict[str, Any]:
    """The progress of a request that has just begun."""
    while True:
        said: dict[str, Any] = (await http.get(PROGRESS, **headers)).json()
        if said["state"]["sampling_step"]:
            return said
        await asyncio.sleep(0.01)


def test_progress_is_of_the_images_under_way() -> None:
    async def run() -> None:
        replica = Stepwise()
        async with asking(replica) as http:
            nothing = (await http.get(PROGRESS)).json()
            assert (nothing["progress"], nothing["state"]["job_count"]) == (0, 0)
            asked = asyncio.create_task(http.post(TXT2IMG, json={"batch_size": 2, "seed": 5}))
            said = await drawing(http)
            while said["state"]["job_no"] == 0:
                said = await drawing(http)
            assert said["progress"] == pytest.approx(0.75)
            assert said["eta_relative"] >= 0
            state = said["state"]
            assert (state["job_count"], state["job_no"]) == (2, 1)
            assert (state["sampling_step"], state["sampling_steps"]) == (2, 4)
            assert said["current_image"] is said["textinfo"] is None
            replica.go.set()
            answer = await asked
            assert json.loads(answer.json()["info"])["all_seeds"] == [5, 6]
            assert (await http.get(PROGRESS)).json() == nothing

    asyncio.run(run())


@pytest.mark.parametrize(("images", "status"), [(1, 499), (3, 200)])
def test_who_is_interrupted_has_what_is_done(images: int, status: int) -> None:
    async def run() -> None:
        async with asking(Stepwise()) as http:
            body = {"batch_size": images, "seed": 5}
            asked = asyncio.create_task(http.post(TXT2IMG, json=body))
            await drawing(http)
            assert (await http.post(INTERRUPT)).json() == {}
            answer = await asked
            if status == 499:
                assert "interrupted" in refusal(answer, 499)["message"]
            else:
                assert answer.status_code == 200
                assert len(answer.json()["images"]) == 1
                assert json.loads(answer.json()["info"])["all_seeds"] == [5]
            assert (await http.get(PROGRESS)).json()["state"]["job_count"] == 0
            assert (await http.post(INTERRUPT)).status_code == 200, "with nothing to interrupt"

    asyncio.run(run())


def test_nobody_sees_or_stops_what_is_anothers() -> None:
    async def run() -> None:
        replica = Stepwise()
        async with asking(replica, entry("alice"), entry("bob")) as http:
            alice, bob = basic("alice"), basic("bob")
            asked = asyncio.create_task(http.post(TXT2IMG, json={}, headers=alice))
            await drawing(http, headers=alice)
            theirs = (await http.get(PROGRESS, headers=bob)).json()
            assert (theirs["progress"], theirs["state"]["job_count"]) == (0, 0)
            assert (await http.post(INTERRUPT, headers=bob)).status_code == 200
            replica.go.set()
            assert (await asked).status_code == 200
            assert replica.jobs[0].caller.name == "alice"

    asyncio.run(run())


def test_a_client_that_goes_ends_its_request() -> None:
    async def run() -> None:
        async with asking(Stepwise()) as http:
            asked = asyncio.create_task(http.post(TXT2IMG, json={}))
            await drawing(http)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert (await http.get(PROGRESS)).json()["state"]["job_count"] == 0

    asyncio.run(run())


def test_images_that_fail_are_named_beside_the_others() -> None:
    answer = client(Failing()).post(TXT2IMG, json={"batch_size": 3, "seed": 5})
    assert answer.status_code == 200
    said = answer.json()
    assert [one["code"] for one in said["failed"]] == ["generation_failed"]
    assert json.loads(said["info"])["all_seeds"] == [6, 7]
    assert len(said["images"]) == 2


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (basic("alice"), 200),
        (basic("alice", ""), 200),
        ({"authorization": "bAsIc " + base64.b64encode(b"a:alice").decode()}, 200),
        ({"authorization": "Bearer alice"}, 200),
        (basic("mallory"), 401),
        ({"authorization": "Basic " + base64.b64encode(b"alice").decode()}, 401),
        ({"authorization": "Basic alice"}, 401),
        ({"authorization": "Basic "}, 401),
        ({}, 401),
    ],
)
def test_a_key_is_the_password_of_whatever_user(sent: dict[str, str], status: int) -> None:
    front = client(None, entry("alice"))
    paths = ("/sdapi/v1/options", PROGRESS, "/controlnet/model_list", "/sdapi/v1/nothing")
    for path in paths:
        answer = front.get(path, headers=sent)
        assert answer.status_code == (404 if status == 200 and "nothing" in path else status)
        if status == 401:
            assert refusal(answer, 401)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == 'Bearer, Basic realm="tcd"'


def test_a_password_is_no_key_elsewhere() -> None:
    front = client(None, entry("alice"))
    assert front.get("/v1/models", headers=basic("alice")).status_code == 401
    answer = front.get("/v1/models")
    assert set(answer.json()) == {"error"}
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_sees_its_models_alone() -> None:
    front = client(None, entry("alice", models=["sdxl"]))
    key = basic("alice")
    assert [m["title"] for m in front.get("/sdapi/v1/sd-models", headers=key).json()] == ["sdxl"]
    (lora,) = front.get("/sdapi/v1/loras", headers=key).json()
    assert (lora["name"], lora["metadata"]) == ("ink", {"models": ["sdxl"]})
    loaded = front.get("/sdapi/v1/embeddings", headers=key).json()["loaded"]
    assert loaded["easynegative"]["sd_checkpoint_name"] == "sdxl"
    assert front.get("/sdapi/v1/options", headers=key).json()["sd_model_checkpoint"] is None
    assert refusal(front.post(TXT2IMG, json={}, headers=key), 403)["code"] == "forbidden"
    for unknown in ("sd15", "nothing"):
        body = {"override_settings": {"sd_model_checkpoint": unknown}}
        refusal(front.post(TXT2IMG, json=body, headers=key), 403)
        set_it = front.post("/sdapi/v1/options", json={"sd_model_checkpoint": unknown}, headers=key)
        assert "sdxl" in refusal(set_it, 404)["message"]
    allowed = {"override_settings": {"sd_model_checkpoint": "sdxl"}}
    assert front.post(TXT2IMG, json=allowed, headers=key).status_code == 200


def test_no_key_that_a_body_carries_is_sent_back() -> None:
    answer = client().post(TXT2IMG, json={"auth": "anyone:secret", "url": "http://secret"})
    assert answer.status_code == 200
    assert answer.json()["ignored"] == ["auth", "url"]
    assert "secret" not in answer.text


def test_a_picture_in_base64_alone_may_be_as_large_as_any() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    picture = base64.b64encode(png(noise)).decode()
    assert len(picture) > 1_000_000
    front = client()
    body = {"init_images": [picture], "width": 64, "height": 64}
    assert front.post("/sdapi/v1/img2img", json=body).status_code == 200
    small = client(max_image_bytes=2**18)
    assert "init_images" in refusal(small.post("/sdapi/v1/img2img", json=body), 400)["message"]


def test_the_same_key_of_idempotence_is_the_same_seed() -> None:
    front = client()

    def seed() -> int:
        answer = front.post(TXT2IMG, json={}, headers={"idempotency-key": "once"}).json()
        found: int = json.loads(answer["info"])["seed"]
        return found

    assert seed() == seed()


def test_images_need_not_be_sent() -> None:
    said = client().post(TXT2IMG, json={"send_images": False, "batch_size": 2}).json()
    assert said["images"] == []
    assert len(json.loads(said["info"])["all_seeds"]) == 2
