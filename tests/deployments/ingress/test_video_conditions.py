"""Controls and IP-Adapters of `/v1/videos`, against bare diffusers."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    ControlNetModel,
    MotionAdapter,
    TCDScheduler,
)
from PIL import Image, ImageSequence
from ray import serve

from deployments.contracts.jobs import Control, IpAdapter, VideoRequest, VideoResult
from preprocessors.canny import canny
from tests.deployments.diffusion.engine.tasks import ADAPTERS, Checkpoint, picture
from tests.deployments.ingress.images import png
from tests.deployments.ingress.test_videos import BODY, LEVELS, ended
from tests.serving import Served

FRAMES = 4
FILM = [picture(number, 64, 64) for number in range(FRAMES)]
FACE = picture(40, 90, 70)


def url(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


BARE: dict[str, Any] = {
    **BODY,
    "num_frames": FRAMES,
    "motion_loras": [],
    "output_format": "webp",
}
CANNY: dict[str, Any] = {
    "type": "canny",
    "image": [url(frame) for frame in FILM],
    "conditioning_scale": 0.8,
    "low_threshold": 50,
}
SEEN = {"image": url(FACE), "scale": 0.7}


@pytest.fixture(scope="module")
def theirs(demo_models: Path) -> np.ndarray:
    """diffusers' frames: edges of each picture of the film, one picture to resemble."""
    files = ADAPTERS["sd15"]
    pipe = AnimateDiffControlNetPipeline.from_pretrained(
        demo_models / "sd15",
        motion_adapter=MotionAdapter.from_pretrained(demo_models / "motion-adapter" / "sd15"),
        controlnet=ControlNetModel.from_pretrained(demo_models / "controlnet" / "sd15" / "canny"),
    )
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(demo_models / "tcd-lora" / "sd15")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.load_ip_adapter(
        demo_models / "ip-adapter",
        subfolder=files.subfolder,
        weight_name=files.weights,
        image_encoder_folder=None,
    )
    pipe.set_ip_adapter_scale(0.7)
    embeds = Checkpoint(demo_models, "sd15", "sd15", files).embeds(FACE)
    frames = pipe(
        prompt=BODY["prompt"],
        conditioning_frames=[Image.fromarray(canny(frame, 50, 200)) for frame in FILM],
        controlnet_conditioning_scale=0.8,
        ip_adapter_image_embeds=[torch.from_numpy(embeds[None, :1])],
        height=64,
        width=64,
        num_frames=FRAMES,
        num_inference_steps=5,
        eta=0.3,
        guidance_scale=0,
        generator=torch.manual_seed(0),
    ).frames[0]
    return np.stack([np.asarray(frame) for frame in frames]).astype(np.int16)


def frames_of(content: bytes) -> np.ndarray:
    film = ImageSequence.Iterator(Image.open(io.BytesIO(content)))
    return np.stack([np.asarray(frame.convert("RGB")).astype(np.int16) for frame in film])


def test_edges_of_each_frame_and_a_picture_to_resemble(served: Served, theirs: np.ndarray) -> None:
    """As JSON, as a form with the official client's flattened fields, and through the handle."""
    posts: list[dict[str, Any]] = [{"json": {**BARE, "controls": [CANNY], "ip_adapter": SEEN}}]
    plain = {name: value for name, value in BARE.items() if value != []}
    form = plain | {"controls": json.dumps([CANNY]), "ip_adapter[image]": SEEN["image"]}
    form["ip_adapter[scale]"] = 0.7
    posts.append({"files": {name: (None, str(value)) for name, value in form.items()}})
    for post in posts:
        answer = httpx.post(f"{served.url}/v1/videos", timeout=60, **post)
        assert answer.status_code == 200, answer.text
        card = ended(served, answer.json()["id"])
        assert card["status"] == "completed", card
        content = httpx.get(f"{served.url}/v1/videos/{card['id']}/content", timeout=60).content
        assert np.abs(frames_of(content) - theirs).max() <= LEVELS
    request = VideoRequest(
        BODY["prompt"],
        model="sd15",
        width=64,
        height=64,
        num_frames=FRAMES,
        num_inference_steps=5,
        eta=0.3,
        guidance_scale=0,
        seed=0,
        controls=(Control("canny", tuple(FILM), conditioning_scale=0.8, low_threshold=50),),
        ip_adapter=IpAdapter((FACE,), 0.7),
    )
    response: Any = serve.get_app_handle("tcd").animate.remote(request)
    result: VideoResult = response.result(timeout_s=120)
    assert np.abs(result.frames.astype(np.int16) - theirs).max() <= LEVELS
    assert result.recipe is not None
    (control,) = result.recipe.controls
    assert len(control.image) == FRAMES
    assert len(set(control.image)) == FRAMES


def test_one_picture_for_all_frames_and_what_the_file_says_of_it(served: Served) -> None:
    control = {"type": "depth", "image": url(FILM[0]), "conditioning_scale": 0.6}
    made = []
    for image in (url(FILM[0]), [url(FILM[0])] * FRAMES):
        asked = {**BARE, "controls": [{**control, "image": image}], "output_format": "mp4"}
        answer = httpx.post(f"{served.url}/v1/videos", json=asked, timeout=60)
        assert answer.status_code == 200, answer.text
        card = ended(served, answer.json()["id"])
        assert card["status"] == "completed", card
        made.append(httpx.get(f"{served.url}/v1/videos/{card['id']}/content").content)
    films, texts = [], []
    for content in made:
        with av.open(io.BytesIO(content), "r") as container:
            texts.append(json.loads(container.metadata["description"])["tcd"]["controls"])
            films.append([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert np.array_equal(films[0], films[1])
    ((one,), (each,)) = texts
    assert one["image"].startswith("sha256:")
    assert each["image"] == [one["image"]] * FRAMES


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        (
            {"controls": [{**CANNY, "image": CANNY["image"][:3]}]},
            "controls.0.image",
            "has 3 pictures, and the video 4 frames: give one picture that all of them follow, or",
        ),
        ({"controls": [{**CANNY, "image": []}]}, "controls.0.image", "at least 1 item"),
        ({"controls": [{**CANNY, "image": [1] * 4}]}, "controls.0.image", "string"),
        ({"controls": [{**CANNY, "type": "pose"}]}, "controls", "has no control 'pose'"),
        ({"controls": [CANNY, CANNY]}, "controls", "named twice"),
        ({"controls": [{**CANNY, "start": 0.9, "end": 0.95}]}, "controls", "none of the 5 steps"),
        (
            {"controls": [{**CANNY, "image": [*CANNY["image"][:3], "data:image/png;base64,AAAA"]}]},
            "controls.0.image.3",
            "",
        ),
        ({"ip_adapter": {**SEEN, "name": "face"}}, "ip_adapter.name", "it has: default"),
        ({"ip_adapter": {"image": "no picture"}}, "ip_adapter.image.0", "must be a data URL"),
        ({"ip_adapter": {**SEEN, "mask": url(FACE * 0)}}, None, ""),
    ],
)
def test_what_is_wrong_is_said_when_the_video_is_asked_for(
    served: Served, change: dict[str, Any], param: str | None, says: str
) -> None:
    answer = httpx.post(f"{served.url}/v1/videos", json={**BARE, **change}, timeout=60)
    if param is None:  # that a mask is black shows when it is made
        card = ended(served, answer.json()["id"])
        assert card["status"] == "failed"
        assert "ip_adapter.mask asks for nothing" in card["error"]["message"]
        return
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].startswith(param)
    assert says in error["message"]


def test_an_image_has_one_picture_a_control(served: Served) -> None:
    body = {"model": "sd15", "prompt": "a", "size": "64x64", "controls": [CANNY]}
    answer = httpx.post(f"{served.url}/v1/images/generations", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "controls.0.image"


def test_many_frames_are_one_picture_of_the_limit(served: Served) -> None:
    """16 pictures may be in a request: a film is one of them."""
    control = {**CANNY, "image": [url(FILM[n % FRAMES]) for n in range(20)]}
    asked = {**BARE, "num_frames": 20, "num_inference_steps": 1, "controls": [control]}
    answer = httpx.post(f"{served.url}/v1/videos", json=asked, timeout=60)
    assert answer.status_code == 200, answer.text
    assert ended(served, answer.json()["id"])["status"] == "completed"
