"""`/v1/videos` through the official client, against bare diffusers."""

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AnimateDiffVideoToVideoPipeline,
    MotionAdapter,
    TCDScheduler,
)
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from ray import serve

from deployments.contracts.jobs import LoraWeight, VideoRequest, VideoResult
from tests.deployments.ingress.images import png
from tests.serving import Served

LEVELS = 2
PICTURE = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
URL = "data:image/png;base64," + base64.b64encode(png(PICTURE)).decode()
PROMPT = "best quality, masterpiece, 1girl, looking at viewer, upper body, dress"
BODY: dict[str, Any] = {
    "model": "sd15",
    "prompt": PROMPT,
    "size": "64x64",
    "num_frames": 8,
    "num_inference_steps": 5,
    "eta": 0.3,
    "guidance_scale": 0,
    "seed": 0,
    "motion_loras": [{"name": "zoom-in", "weight": 1.2}],
}


@pytest.fixture(scope="module")
def frames_of_the_guide(demo_models: Path) -> NDArray[np.int16]:
    """The guide's AnimateDiff sample, on the stand-ins: frames before any palette."""
    adapter = MotionAdapter.from_pretrained(demo_models / "motion-adapter" / "sd15")
    pipe = AnimateDiffPipeline.from_pretrained(demo_models / "sd15", motion_adapter=adapter)
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(demo_models / "tcd-lora" / "sd15", adapter_name="tcd")
    pipe.load_lora_weights(
        demo_models / "motion-loras" / "zoom-in.safetensors", adapter_name="motion-lora"
    )
    pipe.set_adapters(["tcd", "motion-lora"], adapter_weights=[1.0, 1.2])
    frames = pipe(
        prompt=PROMPT,
        height=64,
        width=64,
        num_inference_steps=5,
        guidance_scale=0,
        cross_attention_kwargs={"scale": 1},
        num_frames=8,
        eta=0.3,
        generator=torch.manual_seed(0),
    ).frames[0]
    return np.stack([np.asarray(frame) for frame in frames]).astype(np.int16)


def ended(served: Served, video_id: str, timeout_s: float = 120) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    seen = [-1]
    while True:
        card: dict[str, Any] = httpx.get(f"{served.url}/v1/videos/{video_id}", timeout=30).json()
        assert card["progress"] >= seen[-1]
        seen.append(card["progress"])
        if card["status"] in ("completed", "failed", "cancelled"):
            return card
        assert time.monotonic() < deadline
        time.sleep(0.05)


def made(served: Served, **body: object) -> tuple[dict[str, Any], httpx.Response]:
    started = httpx.post(f"{served.url}/v1/videos", json={**BODY, **body}, timeout=60)
    assert started.status_code == 200, started.text
    card = ended(served, started.json()["id"])
    assert card["status"] == "completed", card
    content = httpx.get(f"{served.url}/v1/videos/{card['id']}/content", timeout=60)
    assert content.status_code == 200
    return card, content


def test_animatediff(served: Served, frames_of_the_guide: NDArray[np.int16]) -> None:
    """The guide's sample: frames through the handle, before a file format touches them."""
    request = VideoRequest(
        PROMPT,
        model="sd15",
        width=64,
        height=64,
        num_frames=8,
        num_inference_steps=5,
        eta=0.3,
        guidance_scale=0,
        seed=0,
        motion_loras=(LoraWeight("zoom-in", 1.2),),
    )
    response: Any = serve.get_app_handle("tcd").animate.remote(request)
    result: VideoResult = response.result(timeout_s=120)
    assert result.frames.shape == (8, 64, 64, 3)
    assert np.abs(result.frames.astype(np.int16) - frames_of_the_guide).max() <= LEVELS


def test_webp_keeps_the_frames(served: Served, frames_of_the_guide: NDArray[np.int16]) -> None:
    card, content = made(served, output_format="webp", fps=10)
    assert content.headers["content-type"] == "image/webp"
    file = Image.open(io.BytesIO(content.content))
    frames = [np.asarray(f.convert("RGB")).astype(np.int16) for f in ImageSequence.Iterator(file)]
    assert np.abs(np.stack(frames) - frames_of_the_guide).max() <= LEVELS
    assert (card["num_frames"], card["fps"], card["seconds"], card["size"]) == (
        8,
        10,
        "0.8",
        "64x64",
    )
    assert card["progress"] == 100


def test_48_frames(served: Served) -> None:
    """Twice as many as the motion layers have positions for."""
    _, content = made(served, num_frames=48, num_inference_steps=2, output_format="webp")
    assert getattr(Image.open(io.BytesIO(content.content)), "n_frames", 1) == 48


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_a_start_picture_however_it_is_sent(served: Served, demo_models: Path) -> None:
    pipe = AnimateDiffVideoToVideoPipeline.from_pretrained(
        demo_models / "sd15",
        motion_adapter=MotionAdapter.from_pretrained(demo_models / "motion-adapter" / "sd15"),
    )
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(demo_models / "tcd-lora" / "sd15")
    frames = pipe(
        video=[Image.fromarray(PICTURE)] * 4,
        prompt=PROMPT,
        height=64,
        width=64,
        num_inference_steps=5,
        strength=0.8,
        eta=0.3,
        guidance_scale=0,
        generator=torch.manual_seed(0),
    ).frames[0]
    theirs = np.stack([np.asarray(frame) for frame in frames]).astype(np.int16)
    usual: dict[str, Any] = {
        **BODY,
        "size": None,  # the picture's
        "num_frames": 4,
        "motion_loras": [],
        "output_format": "webp",
    }
    own = {name: value for name, value in usual.items() if value is not None and value != []}
    prompt, model = own.pop("prompt"), own.pop("model")
    create = served.openai().videos.create
    file = ("a.png", png(PICTURE))
    flat = {**own, "prompt": prompt, "model": model, "input_reference[image_url]": URL}
    posted: list[dict[str, Any]] = [
        {"json": {**usual, "input_reference": URL}},
        {"json": {**usual, "input_reference": {"image_url": URL}}},
        # As the official client would write it, if it let that pass.
        {"files": {name: (None, str(value)) for name, value in flat.items()}},
    ]
    answers = [httpx.post(f"{served.url}/v1/videos", timeout=60, **how) for how in posted]
    assert [answer.status_code for answer in answers] == [200, 200, 200], answers[2].text
    sent = [
        create(prompt=prompt, model=model, input_reference=file, extra_body=own).id,
        *(answer.json()["id"] for answer in answers),
    ]
    for video in sent:
        assert ended(served, video)["size"] == "64x64"
        content = httpx.get(f"{served.url}/v1/videos/{video}/content", timeout=60).content
        webp = ImageSequence.Iterator(Image.open(io.BytesIO(content)))
        ours = np.stack([np.asarray(f.convert("RGB")).astype(np.int16) for f in webp])
        assert np.abs(ours - theirs).max() <= LEVELS


def test_gif(served: Served) -> None:
    _, content = made(served, output_format="gif")
    file = Image.open(io.BytesIO(content.content))
    assert file.format == "GIF"
    assert getattr(file, "n_frames", 1) == 8


def test_mp4(served: Served, frames_of_the_guide: NDArray[np.int16]) -> None:
    _, content = made(served)
    assert content.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(content.content), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 8
    difference = np.abs(np.stack(frames).astype(np.int16) - frames_of_the_guide)
    assert difference.mean() < 20  # colours are halved in resolution


def test_its_stills(served: Served) -> None:
    """The first frame, and all of them in a grid of three columns."""
    card, content = made(served, output_format="webp")
    film = Image.open(io.BytesIO(content.content))
    frames = [np.asarray(f.convert("RGB")).astype(np.int16) for f in ImageSequence.Iterator(film)]
    url = f"{served.url}/v1/videos/{card['id']}/content?variant="
    assert httpx.get(url + "video").content == content.content
    thumbnail, sheet = httpx.get(url + "thumbnail"), httpx.get(url + "spritesheet")
    assert thumbnail.headers["content-type"] == "image/webp"
    assert sheet.headers["content-type"] == "image/jpeg"
    first = np.asarray(Image.open(io.BytesIO(thumbnail.content)).convert("RGB"))
    assert np.abs(first - frames[0]).mean() < 20  # compressed, and noise is what it shows
    grid = np.asarray(Image.open(io.BytesIO(sheet.content)).convert("RGB"))
    assert grid.shape == (3 * 64, 3 * 64, 3)
    fifth = grid[64:128, 64:128]
    apart = [np.abs(fifth - frame).mean() for frame in frames]
    assert min(apart) == apart[4] < 20
    wrong = httpx.get(url + "poster")
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "variant"
    for allowed in ("video", "thumbnail", "spritesheet"):
        assert f"'{allowed}'" in wrong.json()["error"]["message"]


def test_the_file_says_how_it_was_made(served: Served) -> None:
    _, content = made(served)
    with av.open(io.BytesIO(content.content), "r") as container:
        said = json.loads(container.metadata["description"])["tcd"]
    assert said == {
        **BODY,
        "prompt_syntax": "plain",
        "clip_skip": 0,
        "fps": 8,
        "output_format": "mp4",
    }
    _, without = made(served, metadata=False)
    with av.open(io.BytesIO(without.content), "r") as container:
        assert "description" not in container.metadata


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_official_client(served: Served) -> None:
    client = served.openai()
    video = client.videos.create(
        model="sd15", prompt=PROMPT, extra_body={"size": "64x64", "num_frames": 4}
    )
    card = ended(served, video.id)
    assert card["status"] == "completed"
    assert client.videos.retrieve(video.id).status == "completed"
    assert video.id in [listed.id for listed in client.videos.list(limit=2)]
    assert len(client.videos.download_content(video.id).content) > 100
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


@pytest.fixture
def long_video(served: Served) -> Iterator[str]:
    body = {**BODY, "size": "256x256", "num_inference_steps": 50, "num_frames": 16}
    started = httpx.post(f"{served.url}/v1/videos", json=body, timeout=60).json()
    yield started["id"]
    httpx.delete(f"{served.url}/v1/videos/{started['id']}", timeout=60)


def test_a_waiting_image_goes_before_the_next_step(served: Served, long_video: str) -> None:
    wait_until(lambda: served.engine_figure("running_rows", "sd15") == 1)
    image = served.openai().images.generate(model="sd15", prompt="a cat", size="64x64")
    assert image.data
    card = httpx.get(f"{served.url}/v1/videos/{long_video}").json()
    assert card["status"] == "in_progress"
    assert card["progress"] < 95


def test_cancel(served: Served, long_video: str) -> None:
    wait_until(lambda: served.engine_figure("running_rows", "sd15") == 1)
    cancelled = httpx.post(f"{served.url}/v1/videos/{long_video}/cancel", timeout=60).json()
    assert cancelled["status"] == "cancelled"
    wait_until(lambda: served.engine_figure("running_rows", "sd15") == 0)
    content = httpx.get(f"{served.url}/v1/videos/{long_video}/content")
    assert content.status_code == 400
    assert "cancelled" in content.json()["error"]["message"]


def test_a_failed_video_says_why(served: Served) -> None:
    body = {**BODY, "num_frames": 24, "num_inference_steps": 50, "timeout_s": 0.2}
    card = ended(served, httpx.post(f"{served.url}/v1/videos", json=body, timeout=60).json()["id"])
    assert card["status"] == "failed"
    assert card["error"]["code"] == "deadline_exceeded"
    assert "within 0.2 s" in card["error"]["message"]


@pytest.mark.parametrize(
    ("model", "status", "says"),
    [("animagine", 400, "models that do: sd15"), ("nope", 404, "animagine, sd15")],
)
def test_a_model_that_makes_no_videos(served: Served, model: str, status: int, says: str) -> None:
    answer = httpx.post(f"{served.url}/v1/videos", json={**BODY, "model": model}, timeout=60)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == "model"
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"num_frames": 0}, "num_frames"),
        ({"fps": 0}, "fps"),
        ({"output_format": "avi"}, "output_format"),
        ({"seconds": "2"}, "num_frames"),
        ({"num_frames": None, "seconds": 60, "fps": 60}, "num_frames"),
        ({"size": "63x64"}, "size"),
        ({"prompt": None}, "prompt"),
        ({"motion_loras": [{"name": "x", "weight": 99}]}, "motion_loras.0.weight"),
        ({"image": "x"}, "image"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "<lora:ink:1> word"}, "prompt"),
        ({"prompt_syntax": "bold"}, "prompt_syntax"),
        ({"clip_skip": 2}, "clip_skip"),
        ({"negative_prompt": "blurry"}, "negative_prompt"),
        ({"num_frames": 49}, "num_frames"),
        ({"num_frames": 257}, "num_frames"),
        ({"strength": 0.5}, "strength"),
        ({"strength": 0, "input_reference": URL}, "strength"),
        ({"strength": 0.1, "input_reference": URL}, "strength"),
        ({"input_reference": "data:image/png;base64,AAAA"}, "input_reference"),
        ({"input_reference": "map-canny-0"}, "input_reference"),
        ({"input_reference": "{"}, "input_reference"),
        ({"input_reference": {"file_id": "file-1"}}, "input_reference.file_id"),
        ({"input_reference": [URL]}, "input_reference"),
        ({"size": "8x8"}, "size"),
        ({"size": "1024x1024"}, "size"),
        ({"loras": [{"name": "nope"}]}, "loras"),
        ({"motion_loras": [{"name": "nope"}]}, "motion_loras"),
    ],
)
def test_bad_body(served: Served, change: dict[str, object], param: str | None) -> None:
    answer = httpx.post(
        f"{served.url}/v1/videos",
        content=json.dumps({**BODY, **change}),
        headers={"content-type": "application/json"},
        timeout=60,
    )
    assert answer.status_code == (404 if "nope" in str(change) else 400), answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("body", [b"{", b"[" * 200_000, b"\xff", b""])
def test_a_body_that_is_no_json(served: Served, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{served.url}/v1/videos", content=body, headers=headers, timeout=60)
    assert answer.status_code == 400
    assert "not valid JSON" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("seconds", "frames", "fps"), [("4", 16, 4), ("8", 16, 2), ("12", 12, 1)])
def test_the_lengths_of_the_official_client(
    served: Served, seconds: str, frames: int, fps: int
) -> None:
    body = {**BODY, "num_frames": None, "seconds": seconds}
    card = httpx.post(f"{served.url}/v1/videos", json=body, timeout=60).json()
    assert (card["num_frames"], card["fps"], card["seconds"]) == (frames, fps, seconds)
    httpx.delete(f"{served.url}/v1/videos/{card['id']}", timeout=60)


def test_idempotency_key(served: Served) -> None:
    def post(key: str, **change: object) -> httpx.Response:
        headers = {"Idempotency-Key": key}
        url = f"{served.url}/v1/videos"
        return httpx.post(url, json={**BODY, **change}, headers=headers, timeout=60)

    first, again = post("video-one").json()["id"], post("video-one").json()["id"]
    assert first == again
    other = post("video-two").json()["id"]
    assert other != first
    refused = post("video-one", prompt="another")
    assert refused.status_code == 409
    assert refused.json()["error"]["param"] == "idempotency-key"
    for video in (first, other):
        assert httpx.delete(f"{served.url}/v1/videos/{video}", timeout=60).status_code == 200


def test_unknown_video(served: Served) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/content")):
        answer = httpx.request(method, f"{served.url}/v1/videos/video_none{path}", timeout=60)
        assert answer.status_code == 404, (method, path)


def test_a_refusal_leaves_no_traceback(served: Served) -> None:
    body = {**BODY, "loras": [{"name": "nope"}]}
    assert served.logs is not None
    (log,) = served.logs.glob("replica_tcd_Ingress_*.log")
    before = log.read_text().count("Traceback")
    assert httpx.post(f"{served.url}/v1/videos", json=body, timeout=60).status_code == 404
    assert log.read_text().count("Traceback") == before


def wait_until(condition: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
