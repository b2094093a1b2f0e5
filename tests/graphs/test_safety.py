"""The safety checker as Serve runs it: an application beside the others, with one."""

import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from ray import serve
from ray.serve import RunTarget

from configs.app import SafetyArgs, ServiceArgs
from deployments.contracts.errors import Moderated
from deployments.contracts.jobs import ImageRequest
from graphs.service import build
from tests.deployments.ingress.images import data_url, moderated, png
from tests.safety_models import GREEN_PICTURE, RED_PICTURE, write_safety_checker
from tests.serving import Served, beside

RED, GREEN = png(RED_PICTURE), png(GREEN_PICTURE)


@pytest.fixture(scope="module")
def safe(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a second ingress to the same models."""
    folder = write_safety_checker(tmp_path_factory.mktemp("safety"))
    safety = SafetyArgs(checkpoint=str(folder), device="cpu")
    application = build(ServiceArgs(default_model="sd15", safety=safety))
    url = f"{served.url}/safe"
    with beside(RunTarget(application, name="safe", route_prefix="/safe")):
        deadline = time.monotonic() + 60
        while httpx.get(f"{url}/readyz", timeout=30).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield url


def test_it_sees_what_is_shown_and_what_is_sent(safe: str) -> None:
    client = openai.OpenAI(base_url=f"{safe}/v1", api_key="none", max_retries=0)
    red, green = client.moderations.create(
        input=[moderated(data_url(RED)), moderated(data_url(GREEN))]
    ).results
    assert (red.flagged, green.flagged) == (True, False)
    with pytest.raises(openai.BadRequestError) as blocked:
        client.images.edit(model="sd15", image=RED, prompt="a")
    assert blocked.value.code == "moderation_blocked"
    assert blocked.value.param == "image"
    # What a model of random weights draws may look red or not; it is counted in either case.
    answer = httpx.post(f"{safe}/v1/images/generations", json={"prompt": "a"}, timeout=120)
    assert answer.status_code == 200 or '"moderation_blocked"' in answer.text
    metrics = httpx.get(f"{safe}/metrics").text
    assert 'tcd_moderated_total{outcome="blocked",picture="input"} 1.0' in metrics
    assert 'picture="image"} 1.0' in metrics


def test_handles_raise_it(safe: str) -> None:
    handle = serve.get_app_handle("safe")
    with pytest.raises(Moderated) as blocked:
        handle.generate.remote(ImageRequest("a", image=RED)).result(timeout_s=60)
    assert blocked.value.param == "image"


def test_a_video_fails_as_a_job(safe: str) -> None:
    body = {"prompt": "a", "num_frames": 2, "input_reference": {"image_url": data_url(RED)}}
    video = httpx.post(f"{safe}/v1/videos", json=body, timeout=60).json()
    deadline = time.monotonic() + 60
    while video["status"] in ("queued", "in_progress"):
        assert time.monotonic() < deadline, video
        time.sleep(0.2)
        video = httpx.get(f"{safe}/v1/videos/{video['id']}", timeout=30).json()
    assert (video["status"], video["error"]["code"]) == ("failed", "moderation_blocked")
