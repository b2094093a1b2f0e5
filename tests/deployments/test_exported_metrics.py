"""What Ray nodes export for Prometheus: figures of ingress, preprocessors and engines."""

import re
import time

import httpx
import ray

from tests.deployments.diffusion.engine.tasks import picture
from tests.deployments.ingress.images import data_url, png
from tests.serving import Served

WITHIN_S = 60  # Ray reports every ten seconds


def exported() -> str:
    (node,) = (node for node in ray.nodes() if node["Alive"])
    port, address = node["MetricsExportPort"], node["NodeManagerAddress"]
    return httpx.get(f"http://{address}:{port}/metrics", timeout=30).text


def total(text: str, name: str, *labels: str) -> float:
    lines = [line for line in text.splitlines() if re.match(rf"ray_{name}\{{", line)]
    return sum(float(line.split()[-1]) for line in lines if all(label in line for label in labels))


def test_nodes_export_what_happened(served: Served) -> None:
    control = {"type": "canny", "image": data_url(png(picture(70, 128, 128)))}
    body = {"prompt": "a", "model": "sd15", "controls": [control], "num_inference_steps": 3}
    answer = httpx.post(f"{served.url}/v1/images/generations", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    seen = {
        "tcd_engine_rows_total": (
            'model="sd15"',
            'deployment="Diffusion"',
            'application="model-sd15"',
        ),
        "tcd_engine_batch_limit": ('model="sd15"',),
        "tcd_http_requests_total": ('route="/v1/images/generations"', 'status="200"'),
        "tcd_http_request_seconds_count": ('route="/v1/images/generations"',),
        "tcd_preprocessor_pictures_total": ('deployment="Canny"',),
        "tcd_preprocessor_batch_seconds_count": ('deployment="Canny"',),
    }
    deadline = time.monotonic() + WITHIN_S
    while True:
        text = exported()
        missing = [name for name, labels in seen.items() if total(text, name, *labels) <= 0]
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert not missing
    for deployment in ("Canny", "Depth"):  # also such as never had a picture, or failed with one
        for name in ("pictures", "failures"):
            series = rf'ray_tcd_preprocessor_{name}_total\{{[^}}]*deployment="{deployment}"'
            assert re.search(series, text), (name, deployment)
    assert total(text, "tcd_engine_rows_total", 'model="sd15"') >= 3
