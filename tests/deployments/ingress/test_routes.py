"""The other routes: catalogue, health, metrics, API description."""

import re
from pathlib import Path

import httpx
import openai
import pytest

from tests.conftest import STYLES
from tests.serving import Served

MODELS = ["animagine", "sd15", "sdxl", "sdxl-inpainting", "small"]


def test_catalogue(served: Served, demo_models: Path) -> None:
    models = served.openai().models.list()
    assert [model.id for model in models] == MODELS
    assert all(model.object == "model" and model.owned_by for model in models)
    card = httpx.get(f"{served.url}/v1/models/sd15").json()
    assert card["family"] == "sd15"
    images = ["text-to-image", "image-to-image", "inpainting", "image-variation"]
    assert card["tasks"] == [*images, "video"]
    assert set(card["controls"]) == {"depth", "canny"}
    assert card["checkpoint"] == str(demo_models / "sd15")
    assert card["tcd_lora"] == str(demo_models / "tcd-lora" / "sd15")
    assert set(card["loras"]) == set(STYLES)
    assert all(Path(source).exists() for source in card["loras"].values())
    assert card["defaults"] == {
        "width": 128,
        "height": 128,
        "num_inference_steps": 4,
        "eta": 0.3,
        "guidance_scale": 0.0,
    }
    assert card["limits"]["max_side"] == 512
    assert card["limits"]["max_prompt_tokens"] == 75


def test_unknown_model(served: Served) -> None:
    with pytest.raises(openai.NotFoundError):
        served.openai().models.retrieve("nope")


def test_health_and_readiness(served: Served) -> None:
    assert httpx.get(f"{served.url}/healthz").json() == {"status": "ok"}
    ready = httpx.get(f"{served.url}/readyz")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "models": dict.fromkeys(MODELS, "RUNNING"),
        "availability": dict.fromkeys(MODELS, "ready"),
    }
    assert httpx.get(f"{served.url}/readyz?models=sd15,small").json() == ready.json()
    unknown = httpx.get(f"{served.url}/readyz?models=sd15,nobody,small,nothing")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["message"] == "no such model: nobody, nothing"


def test_metrics_name_model_and_replica(served: Served) -> None:
    images = served.engine_figure("images_total", "sd15")
    served.openai().images.generate(prompt="a", n=2)
    assert served.engine_figure("images_total", "sd15") == images + 2
    text = httpx.get(f"{served.url}/metrics").text
    assert 'tcd_http_requests_total{route="/v1/images/generations",status="200"}' in text
    assert 'tcd_engine_batch_limit{model="small",replica="' in text


def test_request_id_is_the_callers_or_made_up(served: Served) -> None:
    given = httpx.get(f"{served.url}/healthz", headers={"x-request-id": "abc-123"})
    assert given.headers["x-request-id"] == "abc-123"
    first, second = (httpx.get(f"{served.url}/healthz").headers["x-request-id"] for _ in "ab")
    assert first != second


def test_api_description_lists_the_fields(served: Served) -> None:
    schema = httpx.get(f"{served.url}/openapi.json").json()
    fields = schema["components"]["schemas"]["GenerationsBody"]["properties"]
    assert {"prompt", "seed", "num_inference_steps", "eta", "loras"} <= set(fields)


def test_the_playground(served: Served) -> None:
    answer = httpx.get(f"{served.url}/")
    assert answer.headers["content-type"].startswith("text/html")
    page = answer.text
    asked_for = set(re.findall(r'\$\("(\w+)"\)', page))
    assert {"model", "prompt", "go"} <= asked_for
    assert asked_for <= set(re.findall(r'id="(\w+)"', page))
    routes = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    called = set(re.findall(r'[("\s]"?(v1/[a-z/]+)"', page))
    assert called
    assert {f"/{route}" for route in called} <= set(routes)
