"""The official client's own types: every parameter and every value that it names is honoured, named
as ignored, or refused with a reason; none is an unknown field."""

import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

import httpx
import numpy as np
import openai
import pytest
from openai.types import (
    image_create_variation_params,
    image_edit_params,
    image_generate_params,
    video_create_params,
)

from tests.deployments.ingress.images import png
from tests.serving import Served

GENERATE = image_generate_params.ImageGenerateParamsBase
EDIT = image_edit_params.ImageEditParamsBase
VARIATION = image_create_variation_params.ImageCreateVariationParams
VIDEO = video_create_params.VideoCreateParams
PICTURE = png(np.full((64, 64, 3), 90, np.uint8))
MASK = png(np.full((64, 64), 255, np.uint8))
# A value for parameters whose types name none; `None`: not one of the body.
VALUES: dict[str, list[object]] = {
    "prompt": ["a red ball"],
    "frame_count": [1, 2],
    "frame_duration_ms": [100],
    "model": ["gpt-image-1", "dall-e-3"],
    "n": [1, 2],
    "output_compression": [50],
    "partial_images": [0, 2],
    "safety_identifier": ["someone"],
    "user": ["someone"],
    "svg": [{"paths": 1}],
    "size": ["64x64", "auto", "1024x1024", "63x64"],
    "stream": [False],
    "image": [PICTURE],
    "mask": [MASK],
    "markup": [PICTURE],
    "input_reference": [PICTURE],
}
HONOURED = {
    *("prompt", "model", "n", "output_format", "partial_images", "quality", "response_format"),
    *("size", "stream", "background", "image", "mask", "output_compression", "seconds"),
}
IGNORED = {
    *("moderation", "complexity", "frame_count", "frame_duration_ms", "style", "input_fidelity"),
    *("user", "safety_identifier"),
}
# What is refused, and a part of the reason.
REFUSED: dict[tuple[str, object], str] = {
    ("background", "transparent"): "no transparency",
    ("frame_count", 2): "frame_count",
    ("output_format", "gif"): "videos alone",
    ("output_format", "svg"): "no svg",
    ("model", "dall-e-3"): "does not exist; models:",
    ("partial_images", 2): "needs stream: true",
    ("size", "1024x1024"): "the nearest is 512x512",
    ("size", "63x64"): "multiples of 8",
}


def named(parameter: str, hint: object) -> list[object]:
    """The values of a parameter that its type names, or ours."""
    values = [
        value
        for part in (hint, *typing.get_args(hint))
        if typing.get_origin(part) is Literal
        for value in typing.get_args(part)
    ]
    return VALUES.get(parameter, values)


def cases(kind: type) -> list[Any]:
    return list(_cases(kind))


def _cases(kind: type) -> Iterator[Any]:
    for parameter, hint in typing.get_type_hints(kind).items():
        for value in named(parameter, hint):
            shown = "file" if isinstance(value, bytes) else value
            yield pytest.param(parameter, value, id=f"{parameter}={shown}")


def ask(served: Served, route: str, parameter: str, value: object) -> openai.BaseModel:
    client = served.openai().images
    usual: dict[str, Any] = {"model": "sd15", "extra_body": {"num_inference_steps": 2}}
    if route != "variation":
        usual["prompt"] = "a red ball"
    if route != "generate":
        usual["image"] = ("a.png", PICTURE)
    if parameter != "size":
        usual["size"] = "64x64"
    if isinstance(value, bytes):
        value = ("b.png", value)
    calls: dict[str, Callable[..., openai.BaseModel]] = {
        "generate": client.generate,
        "edit": client.edit,
        "variation": client.create_variation,
    }
    known = set(openai.resources.images.Images.generate.__annotations__)
    if parameter in known or parameter in ("image", "mask", "input_fidelity"):
        usual[parameter] = value
    else:
        usual["extra_body"] = {**usual["extra_body"], parameter: value}
    return calls[route](**usual)


@pytest.mark.parametrize(("parameter", "value"), cases(GENERATE))
def test_generate(served: Served, parameter: str, value: object) -> None:
    assert_understood(served, "generate", parameter, value)


@pytest.mark.parametrize(("parameter", "value"), cases(EDIT))
def test_edit(served: Served, parameter: str, value: object) -> None:
    if parameter == "markup":
        files = {"image": ("a.png", PICTURE), "markup": ("b.png", PICTURE)}
        answer = httpx.post(
            f"{served.url}/v1/images/edits", files=files, data={"prompt": "a"}, timeout=60
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "markup"
        return
    assert_understood(served, "edit", parameter, value)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # there; not here
@pytest.mark.parametrize(("parameter", "value"), cases(VARIATION))
def test_variation(served: Served, parameter: str, value: object) -> None:
    assert_understood(served, "variation", parameter, value)


def assert_understood(served: Served, route: str, parameter: str, value: object) -> None:
    why = REFUSED.get((parameter, value)) if not isinstance(value, dict) else "is not taken"
    if why is not None:
        with pytest.raises(openai.APIStatusError) as refused:
            ask(served, route, parameter, value)
        assert refused.value.status_code in (400, 404)
        assert why in refused.value.message
        assert "Extra inputs" not in refused.value.message
        return
    answer = ask(served, route, parameter, value)
    ignored = (answer.model_extra or {})["ignored"]
    compressed = parameter == "output_compression"  # png has none to set
    assert (parameter in ignored) == (parameter in IGNORED or compressed), ignored
    assert parameter in IGNORED | HONOURED


def test_completed_events_say_what_was_ignored(served: Served) -> None:
    events = list(
        served.openai().images.generate(
            model="gpt-image-1",
            prompt="a red ball",
            size="64x64",
            stream=True,
            quality="low",
            user="someone",
            output_compression=90,
        )
    )
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert last.quality == "low"
    assert (last.model_extra or {})["ignored"] == ["user", "output_compression"]
    assert last.usage.output_tokens == 16


def test_a_quality_is_a_number_of_steps(served: Served) -> None:
    def taken(**more: Any) -> int:
        answer = served.openai().images.generate(
            model="sd15", prompt="a red ball", size="64x64", **more
        )
        assert answer.usage is not None
        steps: int = (answer.usage.model_extra or {})["denoising_steps"]
        return steps

    assert [taken(quality=quality) for quality in ("low", "medium", "high", "max")] == [2, 4, 8, 16]
    assert taken(quality="high", extra_body={"num_inference_steps": 3}) == 3


def test_seed_minus_1_is_any_seed(served: Served) -> None:
    def seeds(seed: int) -> int:
        answer = served.openai().images.generate(
            prompt="a", size="64x64", extra_body={"seed": seed, "num_inference_steps": 1}
        )
        assert answer.data is not None
        found: int = (answer.data[0].model_extra or {})["seed"]
        return found

    assert seeds(7) == 7
    assert len({seeds(-1) for _ in range(3)}) == 3


def test_an_alias_is_another_name_of_a_model(served: Served) -> None:
    client = served.openai()
    card = client.models.retrieve("gpt-image-1")
    assert card.id == "sd15"
    assert httpx.get(f"{served.url}/readyz?models=gpt-image-1", timeout=30).status_code == 200
    assert "gpt-image-1" not in {model.id for model in client.models.list()}


@pytest.mark.parametrize(("parameter", "value"), cases(VIDEO))
def test_video(served: Served, parameter: str, value: object) -> None:
    body: dict[str, object] = {"prompt": "a", "model": "sd15", "num_inference_steps": 2}
    if parameter != "size":
        body["size"] = "64x64"
    if parameter == "input_reference":
        files = {"input_reference": ("a.png", PICTURE)}
        answer = httpx.post(f"{served.url}/v1/videos", data=body, files=files, timeout=60)
    else:
        answer = httpx.post(f"{served.url}/v1/videos", json={**body, parameter: value}, timeout=60)
    says = answer.text
    refused = value in ("1024x1024", "63x64", "dall-e-3")
    assert answer.status_code == 200 or refused, says
    if refused:
        reasons = ("does not exist", "not allowed", "multiples of 8")
        assert answer.status_code in (400, 404)
        assert any(reason in says for reason in reasons), says
    else:
        video = answer.json()["id"]
        assert httpx.delete(f"{served.url}/v1/videos/{video}", timeout=60).status_code == 200


def test_seconds_of_the_official_client(served: Served) -> None:
    """4, 8 and 12 seconds fit the frames of the model: with fewer frames a second."""
    for seconds in ("4", "8", "12"):
        answer = httpx.post(
            f"{served.url}/v1/videos",
            json={"prompt": "a", "seconds": seconds, "size": "64x64", "num_inference_steps": 1},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        card = answer.json()
        assert card["num_frames"] / card["fps"] == pytest.approx(int(seconds), rel=0.1)
        httpx.delete(f"{served.url}/v1/videos/{card['id']}", timeout=60)


@pytest.mark.filterwarnings("ignore:The Sora API")  # there; not here
def test_the_official_client_waits_as_long_as_it_is_told(served: Served) -> None:
    """It asks again after what `openai-poll-after-ms` says, by itself once a second."""
    body = {"prompt": "a", "size": "64x64", "num_frames": 4, "num_inference_steps": 2}
    created = httpx.post(f"{served.url}/v1/videos", json=body, timeout=60)
    assert created.headers["openai-poll-after-ms"] in ("1000", "500")
    video = served.openai().videos.poll(created.json()["id"])
    assert video.status == "completed"
    done = httpx.get(f"{served.url}/v1/videos/{video.id}", timeout=60)
    assert "openai-poll-after-ms" not in done.headers
    httpx.delete(f"{served.url}/v1/videos/{video.id}", timeout=60)
