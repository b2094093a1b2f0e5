"""Through the running service: the same pictures as OpenAI's routes give of the same request."""

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from deployments.contracts.jobs import Pixels
from tests.deployments.ingress.images import LEVELS, apart, data_url, pixels_of, png, shown
from tests.serving import Served

PICTURE = np.tile(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], (128, 1, 3))
MASK = np.zeros((128, 128), np.uint8)
MASK[32:96, 32:96] = 255
FIELDS = {"prompt": "a (red:1.2) ball <lora:ink:0.6>", "steps": 4, "seed": 7, "eta": 0.3}
SAME: dict[str, Any] = {
    "prompt": "a (red:1.2) ball ",
    "model": "sd15",
    "extra_body": {
        "num_inference_steps": 4,
        "eta": 0.3,
        "seed": 7,
        "guidance_scale": 2.5,
        "negative_prompt": "a cube",
        "prompt_syntax": "weighted",
        "loras": [{"name": "ink", "weight": 0.6}],
    },
}


def base64_of(file: bytes) -> str:
    return base64.b64encode(file).decode()


def asked(served: Served, route: str, **fields: Any) -> dict[str, Any]:
    body = {**FIELDS, "cfg_scale": 2.5, "negative_prompt": "a cube", **fields}
    answer = httpx.post(f"{served.url}/sdapi/v1/{route}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def first(said: dict[str, Any]) -> Pixels:
    return shown(base64.b64decode(said["images"][0]))


def generated(served: Served, **more: Any) -> Pixels:
    body = {**SAME, "extra_body": {**SAME["extra_body"], **more}}
    return pixels_of(served.openai().images.generate(size="128x128", **body))


def test_txt2img_and_what_it_says_of_itself(served: Served) -> None:
    alone = asked(served, "txt2img", width=128, height=128)
    assert (first(alone) == generated(served)).all()
    said = asked(served, "txt2img", width=128, height=128, batch_size=1, n_iter=2)
    assert apart(first(said), first(alone)).max() <= LEVELS
    info = json.loads(said["info"])
    assert info["all_seeds"] == [7, 8]
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (128, 128, 4, 2.5)
    assert (info["sd_model_name"], info["sampler_name"]) == ("sd15", "TCD")
    assert info["prompt"] == FIELDS["prompt"]
    for file, line in zip(said["images"], info["infotexts"], strict=True):
        with Image.open(io.BytesIO(base64.b64decode(file))) as image:
            assert image.info["parameters"] == line
    assert "Steps: 4, Sampler: TCD, CFG scale: 2.5, Seed: 7, Size: 128x128" in info["infotexts"][0]


@pytest.mark.parametrize("inverted", [False, True])
def test_img2img_with_a_mask(served: Served, inverted: bool) -> None:
    said = asked(
        served,
        "img2img",
        init_images=[base64_of(png(PICTURE))],
        mask=data_url(png(255 - MASK if inverted else MASK)),
        inpainting_mask_invert=int(inverted),
        inpainting_fill=1,
        denoising_strength=0.8,
        mask_blur=4,
    )
    edited = served.openai().images.edit(
        image=("a.png", png(PICTURE)),
        mask=("m.png", png(MASK)),
        **{**SAME, "extra_body": {**SAME["extra_body"], "strength": 0.8}},
    )
    assert (first(said) == pixels_of(edited)).all()
    outside = MASK == 0
    assert (first(said)[outside] == PICTURE[outside]).all()
    assert said["ignored"] == ["mask_blur"]


def test_what_is_transparent_of_a_picture_is_white_and_no_mask(served: Served) -> None:
    holed = png(PICTURE, 255 - MASK)
    said = asked(served, "img2img", init_images=[base64_of(holed)], denoising_strength=0.5)
    white = PICTURE.copy()
    white[MASK == 255] = 255
    edited = served.openai().images.edit(
        image=("a.png", png(white)),
        **{**SAME, "extra_body": {**SAME["extra_body"], "strength": 0.5}},
    )
    assert (first(said) == pixels_of(edited)).all()


def test_a_unit_of_depth_and_one_to_resemble(served: Served) -> None:
    picture = base64_of(png(PICTURE))
    units = [
        {"module": "depth_midas", "model": "control_v11f1p_sd15_depth [cfd03158]", "weight": 0.9},
        {"module": "ip-adapter_clip_sd15", "model": "ip-adapter_sd15", "weight": 0.4},
    ]
    said = asked(
        served,
        "txt2img",
        width=128,
        height=128,
        alwayson_scripts={"controlnet": {"args": [{**unit, "image": picture} for unit in units]}},
    )
    url = data_url(png(PICTURE))
    same = generated(
        served,
        controls=[{"type": "depth", "image": url, "conditioning_scale": 0.9}],
        ip_adapter={"image": url, "scale": 0.4},
    )
    assert (first(said) == same).all()
    assert said["ignored"] == []


def test_maps_are_those_of_preprocess(served: Served) -> None:
    body = {
        "controlnet_module": "canny",
        "controlnet_input_images": [base64_of(png(PICTURE))],
        "controlnet_threshold_a": 5,
        "controlnet_threshold_b": 9,
    }
    detected = httpx.post(f"{served.url}/controlnet/detect", json=body, timeout=60)
    same = httpx.post(
        f"{served.url}/v1/preprocess/canny",
        files={"image": ("a.png", png(PICTURE))},
        data={"low_threshold": "5", "high_threshold": "9"},
        timeout=60,
    )
    assert (first(detected.json()) == shown(same.content)).all()
    assert detected.json()["info"] == "Success"
    body["controlnet_module"] = "ip-adapter"
    refused = httpx.post(f"{served.url}/controlnet/detect", json=body, timeout=60)
    assert refused.status_code == 400
    assert "modules that do: depth, canny" in refused.json()["detail"]


def test_what_there_is(served: Served) -> None:
    def get(path: str) -> Any:
        return httpx.get(f"{served.url}{path}", timeout=30).json()

    titles = {model["title"] for model in get("/sdapi/v1/sd-models")}
    assert titles == {card["id"] for card in get("/v1/models")["data"]}
    assert {"ink", "neon", "papercut"} == {lora["name"] for lora in get("/sdapi/v1/loras")}
    assert get("/controlnet/model_list") == {"model_list": ["canny", "depth"]}
    assert get("/sdapi/v1/options")["sd_model_checkpoint"] == "sd15"


def test_an_unknown_style_is_told_those_that_there_are(served: Served) -> None:
    body = {"prompt": "a <lora:nothing:1>"}
    answer = httpx.post(f"{served.url}/sdapi/v1/txt2img", json=body, timeout=60)
    assert answer.status_code == 404
    assert "ink" in answer.json()["detail"]
    assert answer.json()["error"]["param"] == "prompt"


def test_it_is_counted_as_any_other_route(served: Served) -> None:
    asked(served, "txt2img", width=64, height=64, cfg_scale=1, negative_prompt="")
    label = 'route="/sdapi/v1/txt2img",status="200"'
    assert served.figure("tcd_http_requests_total", label) >= 1
