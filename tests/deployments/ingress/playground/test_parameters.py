"""A picture that is dropped on the page gives back what it was made of."""

import base64
import io
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.deployments.ingress.playground.conftest import Visit
from tests.serving import Served

ASKED = {
    "model": "sdxl",
    "prompt": "größer: a red ball, at night",
    "negative_prompt": "snow",
    "size": "64x72",
    "original_size": "48x40",
    "num_inference_steps": 3,
    "eta": 0.5,
    "guidance_scale": 1.5,
    "seed": 2**53 - 1,
    "loras": [{"name": "ink", "weight": 0.5}],
}


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_of_this_service(served: Served, visit: Visit, kind: str) -> None:
    asked = ASKED | {"output_format": kind}
    answer = httpx.post(f"{served.url}/v1/images/generations", json=asked, timeout=120)
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    visitor = visit(served.url + "/")
    visitor.drops(data, f"image/{kind}")
    visitor.page.get_by_text("Taken from the picture.").wait_for()
    for field in ("model", "prompt", "negative_prompt", "original_size"):
        assert visitor.field(field).input_value() == asked[field]
    assert visitor.field("original_size").is_visible()
    for field in ("num_inference_steps", "eta", "guidance_scale", "seed"):
        assert float(visitor.field(field).input_value()) == asked[field]
    assert visitor.field("width").input_value() == "64"
    assert visitor.field("height").input_value() == "72"
    assert visitor.page.get_by_label("ink, exactly").input_value() == "0.5"
    visitor.generate()
    dialog = visitor.opened()
    with visitor.page.expect_download() as started:
        dialog.get_by_role("link", name="Download").click()
    with Image.open(started.value.path()) as again:
        png = httpx.post(f"{served.url}/v1/images/generations", json=ASKED, timeout=120).json()
        first = Image.open(io.BytesIO(base64.b64decode(png["data"][0]["b64_json"])))
        assert np.array_equal(np.asarray(again), np.asarray(first))


def test_of_an_edit_it_says_what_is_lacking(served: Served, visit: Visit) -> None:
    green = io.BytesIO()
    Image.new("RGB", (64, 64), "green").save(green, "png")
    answer = httpx.post(
        f"{served.url}/v1/images/edits",
        data={"prompt": "a red ball", "model": "sd15", "seed": "1"},
        files={"image": green.getvalue()},
        timeout=120,
    )
    visitor = visit(served.url + "/")
    visitor.drops(base64.b64decode(answer.json()["data"][0]["b64_json"]), "image/png")
    visitor.page.get_by_text("Taken from the picture, but for a start picture.").wait_for()


def test_of_another_program(served: Served, visit: Visit, tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text(
        "parameters",
        "a red ball\nNegative prompt: snow\nSteps: 6, Sampler: Euler a, CFG scale: 2.5, "
        "Seed: 77, Size: 64x96, Model: theirs",
    )
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=texts)
    visitor = visit(served.url + "/")
    visitor.drops(file.getvalue(), "image/png")
    visitor.page.get_by_text("Taken from the picture.").wait_for()
    assert visitor.field("prompt").input_value() == "a red ball"
    assert visitor.field("negative_prompt").input_value() == "snow"
    assert visitor.field("seed").input_value() == "77"
    assert visitor.field("height").input_value() == "96"


def test_a_picture_without_any_is_the_start_picture(served: Served, visit: Visit) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "jpeg")
    visitor = visit(served.url + "/")
    visitor.choose("sd15")
    visitor.drops(file.getvalue(), "image/jpeg")
    visitor.page.get_by_role("img", name="Start picture 1").wait_for()


def test_files_that_end_too_early(served: Served, visit: Visit) -> None:
    visitor = visit(served.url + "/")
    for kind in ("png", "jpeg", "webp"):
        asked = {"prompt": json.dumps(kind), "size": "64x64", "output_format": kind}
        answer = httpx.post(f"{served.url}/v1/images/generations", json=asked, timeout=120)
        data = base64.b64decode(answer.json()["data"][0]["b64_json"])
        for length in (0, 3, 10, 30, 60, 100, len(data) // 2):
            visitor.drops(data[:length], f"image/{kind}")
    visitor.page.wait_for_timeout(500)
