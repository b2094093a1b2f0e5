"""`response_format: "url"` end to end: the running service, and S3 over HTTP."""

import base64
import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image
from ray.serve import RunTarget

from configs.app import S3Storage, ServiceArgs
from graphs.service import build
from tests.object_store import BUCKET, ObjectStore
from tests.serving import Served, beside

BODY = {"prompt": "a red ball", "seed": 5, "response_format": "url"}
LEVELS = 2


@pytest.fixture
def stored(served: Served, object_store: ObjectStore) -> Iterator[str]:
    """The address of a second front to the same models, which stores in S3."""
    storage = S3Storage(kind="s3", bucket=BUCKET, prefix="made/", endpoint_url=object_store.url)
    args = ServiceArgs(default_model="sd15", storage=storage)
    with beside(RunTarget(build(args), name="tcd-stored", route_prefix="/stored")):
        yield f"{served.url}/stored"


def test_images_go_to_s3_and_an_outage_costs_only_those_who_want_urls(
    served: Served, stored: str, object_store: ObjectStore
) -> None:
    route = f"{stored}/v1/images/generations"
    client = Served(stored).openai()
    answer = client.images.generate(
        prompt="a red ball", response_format="url", extra_body={"seed": 5}
    )
    assert answer.data is not None
    assert answer.data[0].b64_json is None
    assert answer.data[0].url is not None
    shown = httpx.get(answer.data[0].url)
    assert shown.headers["content-type"] == "image/png"
    plain = served.openai().images.generate(prompt="a red ball", extra_body={"seed": 5})
    assert plain.data is not None
    assert far_apart(shown.content, plain.data[0].b64_json) <= LEVELS

    object_store.stop()
    try:
        refused = httpx.post(route, json=BODY, timeout=120)
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "storage_unavailable"
        other = {**BODY, "response_format": "b64_json"}
        assert httpx.post(route, json=other, timeout=120).status_code == 200
    finally:
        object_store.start()
    assert httpx.post(route, json=BODY, timeout=120).status_code == 200


def far_apart(data: bytes, b64: str | None) -> int:
    assert b64 is not None
    ours, other = (
        np.asarray(Image.open(io.BytesIO(file))).astype(int)
        for file in (data, base64.b64decode(b64))
    )
    return int(np.abs(ours - other).max())
