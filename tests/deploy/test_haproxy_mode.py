"""The service behind Serve's own HAProxy (`RAY_SERVE_ENABLE_HA_PROXY`): no hop through Serve's
proxy process, and the same door."""

import base64
import io
import json
import socket
import time
from collections.abc import Iterator

import httpx
import openai
import psutil
import pytest
from PIL import Image

from demo.service import Running, demo_config, free_port, running
from tests.serving import Served
from tests.survival.processes import has_kind, of_kind

BODY = {"model": "sd15", "prompt": "a red ball, at night", "seed": 7, "num_inference_steps": 4}
LONG = BODY | {"num_inference_steps": 50, "n": 4, "size": "256x256"}


@pytest.fixture(scope="module")
def service(demo_models: object) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
        # One that runs on this host already has the usual ones.
        patch.setenv("RAY_SERVE_HAPROXY_METRICS_PORT", str(free_port()))
        patch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", str(free_port()))
        patch.setenv("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1")
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 8}')
        with running(demo_config(["sd15"]), "haproxy-mode") as started:
            yield started


@pytest.fixture(scope="module")
def behind(service: Running) -> Served:
    return Served(service.url)


def open_ports(process: psutil.Process) -> set[int]:
    """Those that HAProxy sends requests to."""
    listening = process.net_connections("tcp")
    ports = {one.laddr.port for one in listening if one.status == psutil.CONN_LISTEN}
    return ports & set(range(30000, 31001))


def post(served: Served, body: dict[str, object], **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{served.url}/v1/images/generations"
    return httpx.post(url, json=body, headers=named, timeout=120)


def test_requests_are_answered(behind: Served) -> None:
    answer = post(behind, BODY).raise_for_status()
    file = base64.b64decode(answer.json()["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(file)).size == (64, 64)
    assert post(behind, BODY).json()["data"] == answer.json()["data"]
    unknown = post(behind, BODY | {"model": "none"})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["param"] == "model"


def test_a_model_is_one_process_that_cannot_be_asked_from_outside(
    service: Running, behind: Served
) -> None:
    post(behind, BODY).raise_for_status()
    root = service.process.pid
    (model,) = of_kind(root, "model-sd15:Diffusion")
    (ingress,) = of_kind(root, "tcd:Ingress")
    assert not has_kind(root, "model-sd15:Entrance")
    assert open_ports(ingress)
    assert not open_ports(model)


def test_events_come_as_they_happen(behind: Served) -> None:
    client = behind.openai()
    came: list[tuple[str, float]] = []
    for event in client.images.generate(
        model="sd15",
        prompt="a red ball",
        stream=True,
        partial_images=2,
        extra_body={"num_inference_steps": 50, "size": "256x256"},
    ):
        came.append((event.type, time.monotonic()))
    assert [kind for kind, _ in came] == ["image_generation.partial_image"] * 2 + [
        "image_generation.completed"
    ]
    assert came[-1][1] - came[0][1] > 0.1, "not all at the end"


def test_servers_control_headers_are_dropped_here_too(behind: Served) -> None:
    answer = post(behind, BODY, x_request_timeout_seconds="0.001", x_session_id="a")
    assert answer.status_code == 200
    odd = httpx.get(f"{behind.url}/healthz", headers={"x-request-id": "a b"}, timeout=30)
    assert odd.status_code == 200
    assert odd.headers["x-request-id"] != "a b"


@pytest.mark.parametrize("head", [b"a: " + b"x" * 70_000, b"\r\n".join([b"a: b"] * 20_000)])
def test_an_endless_head_is_refused(behind: Served, head: bytes) -> None:
    url = httpx.URL(behind.url)
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        try:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n\r\n")
            answer = connection.recv(65536)
        except ConnectionError:
            return
    assert answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.0 400", b"HTTP/1.1 431")


def test_who_goes_is_worked_for_no_longer(behind: Served) -> None:
    def wait_for(figure: str, least: float) -> None:
        deadline = time.monotonic() + 60
        while behind.engine_figure(figure, "sd15") < least:
            assert time.monotonic() < deadline, f"{figure} is below {least}"
            time.sleep(0.2)

    before = behind.engine_figure("cancelled_total", "sd15")
    url, body = httpx.URL(behind.url), json.dumps(LONG).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        wait_for("pending_images", 4)
    wait_for("cancelled_total", before + 4)


def test_large_bodies_pass(behind: Served) -> None:
    client: openai.OpenAI = behind.openai()
    answer = client.images.generate(model="sd15", prompt="a red ball", n=4)
    assert answer.data is not None
    assert len(answer.data) == 4
    pad = "x" * 200_000
    refused = post(behind, BODY | {"prompt": pad})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "prompt"
