"""Every wrong body gets an answer that names the field and what is allowed."""

import json

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from deployments.contracts.api import GenerationsBody
from deployments.contracts.videos import VideoBody
from deployments.ingress.answer.failures import invalid
from tests.serving import MAX_BODY_BYTES, Served

PROMPT = {"prompt": "a red ball"}
LONG = "!?" * 2000  # as many tokens as characters

CASES: list[tuple[object, int, str | None, str]] = [
    ({}, 400, "prompt", "required"),
    ({"prompt": 7}, 400, "prompt", "string"),
    ({"prompt": None}, 400, "prompt", "required"),
    ({"prompt": "\ud800"}, 400, "prompt", "surrogate"),
    ({**PROMPT, "negative_prompt": "\udfff", "guidance_scale": 2}, 400, "negative_prompt", "surro"),
    ({**PROMPT, "loras": [{"name": "ink", "weigth": 1}]}, 400, "loras.0.weigth", "unknown field"),
    ({**PROMPT, "strenght": None}, 400, "strenght", "unknown field"),
    ({**PROMPT, "size": "\u0661\u0662\u0668x128"}, 400, "size", "WIDTHxHEIGHT"),
    ({"prompt": LONG}, 400, "prompt", "at most 2400"),
    ({"prompt": "a" * 5000}, 400, "prompt", "4000"),
    (["prompt"], 400, None, "the body must be an object"),
    ({**PROMPT, "n": 0}, 400, "n", "1"),
    ({**PROMPT, "n": 5}, 400, "n", "4"),
    ({**PROMPT, "n": "many"}, 400, "n", "integer"),
    ({**PROMPT, "n": True}, 400, "n", "must be a number, not true or false"),
    ({**PROMPT, "eta": False}, 400, "eta", "must be a number, not true or false"),
    ({**PROMPT, "size": "large"}, 400, "size", "WIDTHxHEIGHT"),
    ({**PROMPT, "size": "100x128"}, 400, "size", "multiples of 8"),
    ({**PROMPT, "size": "0x128"}, 400, "size", "multiples of 8"),
    ({**PROMPT, "size": "32x32"}, 400, "size", "64"),
    ({**PROMPT, "size": "1024x128"}, 400, "size", "512"),
    ({**PROMPT, "size": 128}, 400, "size", "string"),
    ({**PROMPT, "original_size": "64x64"}, 400, "original_size", "ask an sdxl model"),
    ({**PROMPT, "original_size": "0x64"}, 400, "original_size", "1 to 16384"),
    ({**PROMPT, "original_size": "auto"}, 400, "original_size", "WIDTHxHEIGHT"),
    ({**PROMPT, "target_size": "20000x64"}, 400, "target_size", "1 to 16384"),
    ({**PROMPT, "target_size": [64, 64]}, 400, "target_size", "WIDTHxHEIGHT"),
    ({**PROMPT, "num_inference_steps": 0}, 400, "num_inference_steps", "1"),
    ({**PROMPT, "num_inference_steps": 51}, 400, "num_inference_steps", "50"),
    ({**PROMPT, "num_inference_steps": 2.5}, 400, "num_inference_steps", "integer"),
    ({**PROMPT, "eta": -0.1}, 400, "eta", "0"),
    ({**PROMPT, "eta": 1.1}, 400, "eta", "1"),
    ({**PROMPT, "guidance_scale": -1}, 400, "guidance_scale", "0"),
    ({**PROMPT, "guidance_scale": 31}, 400, "guidance_scale", "30"),
    ({**PROMPT, "negative_prompt": "b"}, 400, "negative_prompt", "guidance_scale"),
    (
        {**PROMPT, "negative_prompt": LONG, "guidance_scale": 5},
        400,
        "negative_prompt",
        "at most 2400",
    ),
    ({**PROMPT, "seed": -2}, 400, "seed", "-1"),
    ({**PROMPT, "seed": 2**63}, 400, "seed", str(2**63 - 1)),
    ({**PROMPT, "seed": 2**63 - 1, "n": 2}, 400, "seed", "at most"),
    ({**PROMPT, "loras": [{"name": "nope"}]}, 404, "loras", "papercut"),
    ({**PROMPT, "loras": [{"name": "ink"}, {"name": "ink"}]}, 400, "loras", "twice"),
    ({**PROMPT, "loras": [{"name": "ink", "weight": 11}]}, 400, "loras.0.weight", "10"),
    ({**PROMPT, "loras": [{"weight": 1}]}, 400, "loras.0.name", "required"),
    ({**PROMPT, "loras": "ink"}, 400, "loras", "list"),
    ({**PROMPT, "model": "nope"}, 404, "model", "sd15"),
    ({**PROMPT, "stream": True, "partial_images": 4}, 400, "partial_images", "3"),
    ({**PROMPT, "partial_images": 2}, 400, "partial_images", "needs stream: true"),
    ({**PROMPT, "output_format": "gif"}, 400, "output_format", "png"),
    (
        {**PROMPT, "output_format": "webp", "output_compression": 101},
        400,
        "output_compression",
        "100",
    ),
    ({**PROMPT, "response_format": "file"}, 400, "response_format", "b64_json"),
    ({**PROMPT, "background": "transparent"}, 400, "background", "opaque"),
    ({**PROMPT, "quality": "ultra"}, 400, "quality", "'high'"),
    ({**PROMPT, "style": "bold"}, 400, "style", "vivid"),
    ({**PROMPT, "priority": 11}, 400, "priority", "10"),
    ({**PROMPT, "timeout_s": 0}, 400, "timeout_s", "0"),
    ({**PROMPT, "num_inference_step": 4}, 400, "num_inference_step", "num_inference_steps"),
]


@pytest.mark.parametrize(
    ("schema", "body", "says"),
    [
        (
            GenerationsBody,
            {"ip_adapter": {"image": 5}},
            "ip_adapter.image: must be a picture, as text, or a list of them",
        ),
        (
            VideoBody,
            {"controls": [{"type": "canny", "image": {}}]},
            "controls.0.image: must be a picture, as text, or a list of them",
        ),
        (
            VideoBody,
            {"input_reference": 5},
            'input_reference: must be a picture, as text, or {"image_url": ...}',
        ),
    ],
)
def test_what_may_be_said_in_two_ways_names_both(
    schema: type[BaseModel], body: dict[str, object], says: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        schema.model_validate({**PROMPT, **body})
    assert str(invalid(refused.value)) == says


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "param", "says"), CASES)
def test_bad_body(
    served: Served, body: object, status: int, param: str | None, says: str, stream: bool
) -> None:
    if isinstance(body, dict) and "partial_images" not in body:
        body = {**body, "stream": stream}
    answer = httpx.post(
        f"{served.url}/v1/images/generations",
        content=json.dumps(body),  # in ASCII: httpx itself cannot send half a surrogate pair
        headers={"content-type": "application/json"},
        timeout=60,
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"]


def test_null_is_the_default(served: Served) -> None:
    fields = (
        "model n size output_format output_compression response_format stream partial_images "
        "eta guidance_scale negative_prompt loras controls ip_adapter priority timeout_s"
    )
    body = {**PROMPT, "seed": 3, "num_inference_steps": 1, **dict.fromkeys(fields.split())}
    answer = httpx.post(f"{served.url}/v1/images/generations", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "sd15"


def test_body_that_is_not_json(served: Served) -> None:
    answer = httpx.post(
        f"{served.url}/v1/images/generations",
        content=b"{prompt}",
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] is None
    assert "not valid JSON" in answer.json()["error"]["message"]


def test_body_without_its_type(served: Served) -> None:
    answer = httpx.post(f"{served.url}/v1/images/generations", content=b'{"prompt": "a"}')
    assert answer.status_code == 400
    assert "content-type: application/json" in answer.json()["error"]["message"]


def test_body_that_is_too_large(served: Served) -> None:
    answer = httpx.post(
        f"{served.url}/v1/images/generations", json={"prompt": "a" * MAX_BODY_BYTES}, timeout=60
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_wrong_method_and_unknown_path(served: Served) -> None:
    answer = httpx.get(f"{served.url}/v1/images/generations")
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"
    answer = httpx.get(f"{served.url}/v2/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_nothing_of_this_cost_anyone_anything(served: Served) -> None:
    assert served.engine_figure("pending_images", "sd15") == 0
    assert served.engine_figure("failed_total", "sd15") == 0
