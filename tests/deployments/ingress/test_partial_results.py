"""Images that fail beside others: what answers and streams say of them."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from configs.app import ServiceArgs
from deployments.contracts.errors import GenerationFailed
from deployments.contracts.jobs import (
    Caller,
    Completed,
    FailedImage,
    FinishedImage,
    ImageRequest,
    ImageResult,
    Latents,
    StreamEvent,
    Usage,
)
from deployments.ingress.http.app import make_app
from deployments.ingress.request.service import NOBODY, Service

PICTURE = np.zeros((8, 8, 3), np.uint8)
LATENTS: Latents = np.zeros((4, 1, 1), np.float32)
USAGE = Usage(3, 2, 8)
GENERATIONS = "/v1/images/generations"


class SomeFail(Service):
    """Makes all images but those of some indices."""

    def __init__(self, *failing: int) -> None:
        self._failing = failing

    async def generate(self, request: ImageRequest, caller: Caller = NOBODY) -> ImageResult:
        made = [index for index in range(request.n) if index not in self._failing]
        seeds = tuple((request.seed or 0) + index for index in made)
        failed = tuple(FailedImage(i, GenerationFailed("NaN")) for i in self._failing)
        return ImageResult("none", (PICTURE,) * len(made), seeds, 8, 8, USAGE, failed)

    async def stream(
        self, request: ImageRequest, caller: Caller = NOBODY, timeout_s: float | None = None
    ) -> AsyncGenerator[StreamEvent]:
        for index in range(request.n):
            if index in self._failing:
                yield FailedImage(index, GenerationFailed("NaN"))
            else:
                share = Usage(index, 1, 4)
                yield FinishedImage(index, (request.seed or 0) + index, PICTURE, LATENTS, share)
        yield Completed("none", USAGE)


def client(*failing: int) -> TestClient:
    desk: Any = None
    return TestClient(make_app(SomeFail(*failing), desk, ServiceArgs()))


@pytest.mark.parametrize("failing", [(0,), (1,), (3,), (0, 1, 3)])
def test_the_others_come_and_the_failed_are_named(failing: tuple[int, ...]) -> None:
    answer = client(*failing).post(GENERATIONS, json={"prompt": "a", "n": 4, "seed": 7})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [image["seed"] for image in body["data"]] == [7, 8, 9, 10]
    for index, image in enumerate(body["data"]):
        if index in failing:
            assert image["error"]["code"] == "generation_failed"
            assert image["error"]["message"] == "NaN"
            assert "b64_json" not in image
        else:
            assert set(image) == {"b64_json", "seed"}
    assert body["usage"]["total_tokens"] == 5


def test_what_is_made_is_not_refused_for_want_of_threads() -> None:
    class Many(SomeFail):
        async def generate(self, request: ImageRequest, caller: Caller = NOBODY) -> ImageResult:
            return ImageResult("none", (PICTURE,) * 300, tuple(range(300)), 8, 8, USAGE)

    desk: Any = None
    answer = TestClient(make_app(Many(), desk, ServiceArgs())).post(
        GENERATIONS, json={"prompt": "a"}
    )
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 300


@pytest.mark.parametrize("failing", [(0,), (1,), (2,)])
def test_a_stream_names_them_and_each_has_its_usage(failing: tuple[int, ...]) -> None:
    asked = {"prompt": "a", "n": 3, "seed": 7, "stream": True}
    answer = client(*failing).post(GENERATIONS, json=asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [
        json.loads(line.removeprefix("data: "))
        for line in answer.text.splitlines()
        if line.startswith("data: ")
    ]
    failed = [e for e in events if e["type"] == "image_generation.failed"]
    made = [e for e in events if e["type"] == "image_generation.completed"]
    assert [event["image_index"] for event in failed] == list(failing)
    assert failed[0]["error"]["code"] == "generation_failed"
    assert sorted(event["image_index"] for event in made) == sorted({0, 1, 2} - set(failing))
    for event in made:
        assert event["usage"]["input_tokens"] == event["image_index"]
        assert event["usage"]["denoising_steps"] == 4
