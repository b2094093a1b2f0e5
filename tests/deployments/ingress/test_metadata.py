"""What the running service writes into files of how they were made: by it, they are made again."""

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any, cast

import httpx
import numpy as np
import pytest
from PIL import Image
from ray import serve

from deployments.contracts.jobs import FinishedImage, ImageRequest, StreamEvent
from tests.deployments.diffusion.engine.tasks import picture
from tests.deployments.ingress.answer import a1111
from tests.deployments.ingress.images import apart, data_url, png, shown
from tests.serving import Served

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
PICTURE = png(picture(7, 64, 64))
BODY: dict[str, Any] = {"model": "sd15", "prompt": 'a "red" ball, so: on the sand', "size": "64x64"}


def files_of(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]


def generated(served: Served, body: dict[str, Any]) -> list[bytes]:
    return files_of(httpx.post(served.url + GENERATIONS, json=body, timeout=60))


def request_in(file: bytes) -> dict[str, Any]:
    request: dict[str, Any] = json.loads(cast(Any, Image.open(io.BytesIO(file))).info["tcd"])
    return request


def test_a_picture_is_made_again_by_what_it_says(served: Served) -> None:
    style = {"loras": [{"name": "ink", "weight": 0.7}], "guidance_scale": 3.5, "clip_skip": 1}
    asked = {**BODY, **style, "negative_prompt": "grey", "n": 2}
    files = generated(served, asked)
    first, second = map(request_in, files)
    assert second == {**first, "seed": first["seed"] + 1}
    for file, request in zip(files, (first, second), strict=True):
        (again,) = generated(served, request)
        assert apart(shown(again), shown(file)).max() <= 1  # alone, where it had a neighbour
        assert request_in(again) == request
        (third,) = generated(served, request)
        assert (shown(third) == shown(again)).all()
        text = a1111.infotext_of(file)
        assert text is not None
        read = a1111.parse(text)
        assert (read.prompt, read.negative_prompt) == (BODY["prompt"], "grey")
        assert int(read.figures["Seed"]) == request["seed"]


def test_what_was_left_out_is_filled_in(served: Served) -> None:
    (file,) = generated(served, {"prompt": "a red ball", "model": "gpt-image-1", "quality": "high"})
    request = request_in(file)
    assert request.pop("seed") >= 0
    assert request == {
        "model": "sd15",
        "prompt": "a red ball",
        "n": 1,
        "size": "128x128",
        "num_inference_steps": 8,
        "eta": 0.3,
        "guidance_scale": 0.0,
        "prompt_syntax": "plain",
        "clip_skip": 0,
        "output_format": "png",
    }


def test_an_edit_is_made_again_with_its_picture_put_back(served: Served) -> None:
    def edited(fields: dict[str, Any]) -> bytes:
        form = {k: v if isinstance(v, str) else json.dumps(v) for k, v in fields.items()}
        files = {"image": ("a.png", PICTURE)}
        (file,) = files_of(httpx.post(served.url + EDITS, data=form, files=files, timeout=60))
        return file

    control = {"type": "canny", "image": data_url(PICTURE), "end": 0.8}
    file = edited({**BODY, "controls": [control], "strength": 0.7, "num_inference_steps": 6})
    assert base64.b64encode(PICTURE)[:100] not in file
    request = request_in(file)
    named = f"sha256:{hashlib.sha256(PICTURE).hexdigest()}"
    assert request.pop("image") == named
    assert (request["strength"], request["preserve_unmasked"]) == (0.7, True)
    (said,) = request["controls"]
    assert said["image"] == named
    refused = httpx.post(
        served.url + GENERATIONS, json={**BODY, "controls": request["controls"]}, timeout=60
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "controls.0.image"
    said["image"] = data_url(PICTURE)
    assert (shown(edited(request)) == shown(file)).all()
    text = a1111.infotext_of(file)
    assert text is not None
    assert a1111.parse(text).figures["Denoising strength"] == "0.7"


def test_a_variation_is_made_again_with_its_picture_put_back(served: Served) -> None:
    form = {"model": "sd15", "size": "64x64", "scale": "0.7"}
    files = {"image": ("a.png", PICTURE)}
    route = served.url + "/v1/images/variations"
    (file,) = files_of(httpx.post(route, data=form, files=files, timeout=60))
    request = request_in(file)
    named = f"sha256:{hashlib.sha256(PICTURE).hexdigest()}"
    assert request["ip_adapter"] == {"image": [named], "scale": 0.7}
    request["ip_adapter"]["image"] = data_url(PICTURE)
    (again,) = generated(served, request)
    assert (shown(again) == shown(file)).all()


def test_finished_images_of_a_stream_say_it_and_estimates_do_not(served: Served) -> None:
    body = {**BODY, "seed": 5, "stream": True, "partial_images": 1, "n": 2}
    answer = httpx.post(served.url + GENERATIONS, json=body, timeout=60)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:6] == "data: "]
    assert len(events) == 4
    for event in events:
        file = base64.b64decode(event["b64_json"])
        if event["type"].endswith("completed"):
            assert request_in(file)["seed"] == event["seed"] == 5 + event["image_index"]
        else:
            assert a1111.infotext_of(file) is None


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("metadata", [False, True, None])
def test_a_request_may_want_none(served: Served, output_format: str, metadata: bool | None) -> None:
    body = {**BODY, "num_inference_steps": 1, "output_format": output_format, "metadata": metadata}
    (file,) = generated(served, body)
    assert (a1111.infotext_of(file) is None) == (metadata is False)


@pytest.mark.parametrize("metadata", ["some", 2, [], {}])
def test_other_values_are_refused(served: Served, metadata: object) -> None:
    for route in (GENERATIONS, "/v1/videos"):
        body = {**BODY, "metadata": metadata}
        answer = httpx.post(served.url + route, json=body, timeout=60)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "metadata"


def test_a_file_by_url_says_it_and_needs_no_storage(served: Served) -> None:
    """In the folder that the node has for it."""
    body = {**BODY, "seed": 5, "response_format": "url"}
    answer = httpx.post(served.url + GENERATIONS, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["data"]
    shown_there = httpx.get(image["url"], timeout=60)
    assert shown_there.headers["content-type"] == "image/png"
    (inline,) = generated(served, {**BODY, "seed": 5})
    assert (shown(shown_there.content) == shown(inline)).all()
    assert request_in(shown_there.content) == request_in(inline)


def test_other_applications_see_the_recipe(served: Served) -> None:
    handle = serve.get_app_handle("tcd")
    array = picture(7, 64, 64)
    request = ImageRequest("a red ball", image=array, seed=3, strength=0.5)
    recipe = handle.generate.remote(request).result(timeout_s=60).recipe
    assert recipe is not None
    assert (recipe.model, recipe.prompt, recipe.num_inference_steps) == ("sd15", "a red ball", 4)
    assert (recipe.width, recipe.height, recipe.strength) == (64, 64, 0.5)
    digest = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
    assert recipe.image == f"sha256:{digest}"
    stream = handle.options(stream=True).stream.remote(request)
    events = list(cast(Iterator[StreamEvent], stream))
    (finished,) = (event for event in events if isinstance(event, FinishedImage))
    assert finished.recipe == recipe
    assert finished.usage.denoising_steps == 2
    assert np.asarray(finished.pixels).shape == (64, 64, 3)
