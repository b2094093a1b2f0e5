"""The other routes: catalogue, health, metrics, API description."""

import json
import re
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

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
    assert card["control_kinds"] == {"depth": "controlnet", "canny": "controlnet"}
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
        "prompt_syntax": "plain",
        "clip_skip": 0,
    }
    assert card["limits"]["max_side"] == 512
    assert card["limits"]["max_prompt_tokens"] == 2400


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
    for path in re.findall(r'"(playground/[^"]+)"', answer.text):
        assert httpx.get(f"{served.url}/{path}").status_code == 200


def talk(served: Served, *parts: bytes) -> bytes:
    """What Serve's proxy answers to bytes, until it closes the connection."""
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
            while received := connection.recv(65536):
                answer += received
        except ConnectionError:
            pass  # it did not want to hear the rest
    return answer


def head(*headers: bytes) -> bytes:
    lines = (b"GET /healthz HTTP/1.1", b"host: service.test", b"connection: close", *headers)
    return b"\r\n".join((*lines, b"", b""))


@pytest.mark.parametrize("sent", [b"\xff\xfe", "\u00e9".encode(), b"a b", b"x" * 129, b""])
def test_a_request_id_that_cannot_be_one_is_replaced(served: Served, sent: bytes) -> None:
    answer = talk(served, head(b"x-request-id: " + sent))
    assert answer.startswith(b"HTTP/1.1 200 ")
    (given,) = re.findall(rb"(?i)x-request-id: ([!-~]+)\r\n", answer)
    assert given != sent


@pytest.mark.parametrize(
    "header",
    [
        b"x-request-timeout-seconds: 0.000001",
        b"x-request-disconnect-disabled: ?1",
        b"serve_multiplexed_model_id: \xff",
        b"Serve-Multiplexed-Model-Id: \xff",
        b"x-session-id: \xff",
        b"traceparent: \xff",
    ],
)
def test_nobody_outside_controls_serve(served: Served, header: bytes) -> None:
    assert talk(served, head(header)).startswith(b"HTTP/1.1 200 ")


def test_an_endless_header_is_not_read(served: Served) -> None:
    answer = talk(served, head()[:-2] + b"x: ", *[b"x" * 65536] * 64)
    assert answer.startswith(b"HTTP/1.1 400 ") or not answer  # or it was cut while we spoke
    assert httpx.get(f"{served.url}/healthz", timeout=5).is_success


def test_what_is_no_http_is_refused_in_the_same_shape(served: Served) -> None:
    _, _, body = talk(served, b"nonsense\r\n\r\n").partition(b"\r\n\r\n")
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_a_refusal_is_in_the_replicas_log(served: Served) -> None:
    asked = {"x-request-id": "id-of-a-refusal"}
    body = {"prompt": "a secret", "n": 0}
    url = f"{served.url}/v1/images/generations"
    assert httpx.post(url, json=body, headers=asked).status_code == 400
    assert served.logs is not None
    (line,) = lines_about(served.logs, "id-of-a-refusal")
    assert '"outcome": "refused", "status": 400' in line
    assert '"code": "invalid_value", "param": "n"' in line
    assert "a secret" not in line


def lines_about(logs: Path, request_id: str) -> list[str]:
    """The lines of the ingress's log about one request, but for Serve's own."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        files = logs.glob("replica_tcd_Ingress_*.log")
        lines = [line for file in files for line in file.read_text().splitlines()]
        if found := [line for line in lines if request_id in line and '"outcome"' in line]:
            return found
        time.sleep(0.1)
    return []
