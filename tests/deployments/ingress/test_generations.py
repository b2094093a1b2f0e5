"""`POST /v1/images/generations` through the official client, against bare diffusers."""

import base64
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
from diffusers import StableDiffusionPipeline, TCDScheduler
from numpy.typing import NDArray
from PIL import Image

from deployments.contracts.api import OutputFormat
from tests.serving import SMALL_QUEUE, Served

LEVELS = 2  # how far a pixel may be from the oracle's


def decoded(b64: str | None, image_format: str = "PNG") -> NDArray[np.int16]:
    assert b64 is not None
    image = Image.open(io.BytesIO(base64.b64decode(b64)))
    assert image.format == image_format
    return np.asarray(image.convert("RGB")).astype(np.int16)


@pytest.fixture(scope="module")
def pipeline(demo_models: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(demo_models / "sd15")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(str(demo_models / "tcd-lora" / "sd15"))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe


def test_an_image_is_the_one_that_diffusers_makes(
    served: Served, pipeline: StableDiffusionPipeline
) -> None:
    answer = served.openai().images.generate(
        model="sd15",
        prompt="a blue cube in the snow",
        size="136x104",
        extra_body={
            "seed": 5,
            "num_inference_steps": 6,
            "eta": 0.7,
            "guidance_scale": 4.0,
            "negative_prompt": "blurry",
        },
    )
    expected = pipeline(
        "a blue cube in the snow",
        negative_prompt="blurry",
        width=136,
        height=104,
        num_inference_steps=6,
        eta=0.7,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert answer.data is not None
    made = decoded(answer.data[0].b64_json)
    assert np.abs(made - np.asarray(expected).astype(np.int16)).max() <= LEVELS


def test_n_images_take_consecutive_seeds_and_defaults(served: Served) -> None:
    client = served.openai()
    answer = client.images.generate(prompt="a cat", n=3, extra_body={"seed": 40})
    assert answer.data is not None
    assert [image.model_extra["seed"] for image in answer.data if image.model_extra] == [40, 41, 42]
    alone = client.images.generate(prompt="a cat", extra_body={"seed": 42})
    assert alone.data is not None
    assert answer.size == "128x128"
    third, same = decoded(answer.data[2].b64_json), decoded(alone.data[0].b64_json)
    assert np.abs(third - same).max() <= LEVELS
    assert np.abs(third - decoded(answer.data[0].b64_json)).max() > LEVELS


def test_usage_counts_tokens_patches_and_steps(served: Served) -> None:
    usage = served.openai().images.generate(prompt="a red ball", n=2).usage
    assert usage is not None
    assert usage.input_tokens == usage.input_tokens_details.text_tokens == 3
    assert usage.output_tokens == 2 * 8 * 8
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.model_extra == {"denoising_steps": 8}


def test_a_seed_is_chosen_and_told(served: Served) -> None:
    client = served.openai()
    first = client.images.generate(prompt="a dog")
    assert first.data is not None
    assert first.data[0].model_extra is not None
    seed = first.data[0].model_extra["seed"]
    again = client.images.generate(prompt="a dog", extra_body={"seed": seed})
    assert again.data is not None
    difference = decoded(first.data[0].b64_json) - decoded(again.data[0].b64_json)
    assert np.abs(difference).max() <= LEVELS


@pytest.mark.parametrize(("output_format", "tolerance"), [("png", 0), ("webp", 0), ("jpeg", 40)])
def test_output_formats(served: Served, output_format: OutputFormat, tolerance: int) -> None:
    client = served.openai()
    extra = {"seed": 1}
    png = client.images.generate(prompt="a tree", extra_body=extra)
    other = client.images.generate(
        prompt="a tree",
        output_format=output_format,
        extra_body=extra,
    )
    assert png.data is not None
    assert other.data is not None
    made = decoded(other.data[0].b64_json, output_format.upper())
    assert np.abs(made - decoded(png.data[0].b64_json)).mean() <= max(tolerance, LEVELS)


def test_compression_makes_smaller_files(served: Served) -> None:
    def size(compression: int) -> int:
        answer = served.openai().images.generate(
            prompt="a tree",
            output_format="jpeg",
            output_compression=compression,
            extra_body={"seed": 1},
        )
        assert answer.data is not None
        return len(answer.data[0].b64_json or "")

    assert size(20) < size(90) / 2


def test_style_loras_change_the_image(served: Served) -> None:
    def made(**extra: object) -> NDArray[np.int16]:
        answer = served.openai().images.generate(prompt="a house", extra_body={"seed": 3, **extra})
        assert answer.data is not None
        return decoded(answer.data[0].b64_json)

    plain = made()
    styled = made(loras=[{"name": "papercut", "weight": 1.0}, {"name": "ink", "weight": 0.5}])
    assert np.abs(plain - styled).mean() > 5
    assert np.abs(plain - made(loras=[{"name": "papercut", "weight": 0.0}])).max() <= LEVELS


def test_stream_with_partial_images(served: Served) -> None:
    stream = served.openai().images.generate(
        prompt="a red ball", stream=True, partial_images=3, extra_body={"seed": 9}
    )
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [getattr(event, "partial_image_index", None) for event in events] == [0, 1, 2, None]
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert last.usage.output_tokens == 64
    plain = served.openai().images.generate(prompt="a red ball", extra_body={"seed": 9})
    assert plain.data is not None
    final = decoded(last.b64_json)
    assert np.abs(final - decoded(plain.data[0].b64_json)).max() <= LEVELS
    # Estimates come closer to the final image as steps are taken.
    distances = [np.abs(decoded(event.b64_json) - final).mean() for event in events[:3]]
    assert distances[0] > distances[1] > distances[2] > 0


def test_the_usage_of_a_stream_is_that_of_its_images(served: Served) -> None:
    events = list(
        served.openai().images.generate(
            prompt="a red ball", n=2, stream=True, extra_body={"seed": 9}
        )
    )
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    extras = [event.model_extra or {} for event in events]
    assert sorted((extra["image_index"], extra["seed"]) for extra in extras) == [(0, 9), (1, 10)]
    plain = served.openai().images.generate(prompt="a red ball", n=2, extra_body={"seed": 9})
    assert plain.usage is not None
    shares = [event.usage for event in events if event.type == "image_generation.completed"]
    for figure in ("input_tokens", "output_tokens", "total_tokens"):
        assert sum(getattr(share, figure) for share in shares) == getattr(plain.usage, figure)
    assert [share.input_tokens for share in shares] == [3, 0]
    assert [share.model_extra for share in shares] == [{"denoising_steps": 4}] * 2


def test_bad_field_is_a_bad_request(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.openai().images.generate(prompt="a", extra_body={"num_inference_steps": 51})
    assert caught.value.param == "num_inference_steps"
    assert "50" in caught.value.message


def test_unknown_model_is_not_found(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        served.openai().images.generate(model="nope", prompt="a")
    assert "sd15" in caught.value.message
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_full_queue_is_a_rate_limit_with_a_true_retry_time(served: Served) -> None:
    body = {"model": "small", "prompt": "a", "num_inference_steps": 50, "n": SMALL_QUEUE}
    with httpx.Client(base_url=served.url, timeout=120) as client:
        client.post("/v1/images/generations", json={**body, "num_inference_steps": 2})  # measures
        with client.stream("POST", "/v1/images/generations", json={**body, "stream": True}):
            wait_until(lambda: served.engine_figure("running_rows", "small") == SMALL_QUEUE)
            with pytest.raises(openai.RateLimitError) as caught:
                served.openai().images.generate(model="small", prompt="b")
            headers = caught.value.response.headers
            retry_s = int(headers["retry-after-ms"]) / 1000
            assert int(headers["retry-after"]) >= retry_s
            started = time.monotonic()
            wait_until(lambda: served.engine_figure("pending_images", "small") < SMALL_QUEUE)
            waited = time.monotonic() - started
            assert retry_s / 4 <= waited + 0.5
            assert waited <= retry_s * 4 + 0.5
    # With its own retries, the client gets through by itself.
    assert served.openai(max_retries=5).images.generate(model="small", prompt="b").data


@pytest.mark.parametrize("stream", [True, False])
def test_a_gone_client_frees_its_slot_within_two_steps(served: Served, stream: bool) -> None:
    cancelled = served.engine_figure("cancelled_total", "sd15")
    body = {"prompt": "a", "num_inference_steps": 50, "size": "512x512", "stream": stream}
    with killed_client(served.url, body):
        wait_until(lambda: served.engine_figure("running_rows", "sd15") == 1)
        steps = served.engine_figure("steps_total", "sd15")
    wait_until(lambda: served.engine_figure("running_rows", "sd15") == 0)
    assert served.engine_figure("steps_total", "sd15") - steps <= 2
    assert served.engine_figure("cancelled_total", "sd15") == cancelled + 1


@contextmanager
def killed_client(url: str, body: dict[str, object]) -> Iterator[None]:
    """A client process that asks for images, and is killed at the end of the block."""
    program = (
        "import json, sys, httpx; "
        "httpx.post(sys.argv[1], json=json.loads(sys.argv[2]), timeout=600)"
    )
    command = [sys.executable, "-c", program, f"{url}/v1/images/generations", json.dumps(body)]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_a_late_request_is_told_so(served: Served) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        served.openai().images.generate(
            prompt="a",
            size="512x512",
            extra_body={"num_inference_steps": 50, "timeout_s": 0.5},
        )
    assert caught.value.status_code == 408
    assert "0.5 s" in caught.value.message


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
def test_idempotency_key(served: Served, stream: bool) -> None:
    def made(key: str, **more: object) -> str:
        body = {"prompt": "a", "num_inference_steps": 1, "stream": stream, **more}
        answer = httpx.post(
            f"{served.url}/v1/images/generations",
            json=body,
            headers={"Idempotency-Key": key},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        found = re.search(r'"b64_json": ?"([^"]+)"', answer.text)
        assert found
        return found[1]

    assert made("one") == made("one") != made("two")
    assert made("three", seed=5) == made("four", seed=5)
    answer = httpx.post(
        f"{served.url}/v1/images/generations",
        json={"prompt": "a"},
        headers={"Idempotency-Key": 256 * "k"},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "idempotency-key"
