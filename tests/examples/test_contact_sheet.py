"""The example of another Ray application, next to the service."""

import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image
from ray import serve
from ray.serve import RunTarget

from deployments.contracts.jobs import ImageRequest, LoraWeight
from examples.contact_sheet import SheetArgs, build
from tests.serving import Served, beside

LEVELS = 2


@pytest.fixture(scope="module")
def sheets(served: Served) -> Iterator[str]:
    args = SheetArgs(model="sd15", styles=("papercut", "ink"))
    with beside(RunTarget(build(args), name="contact-sheet", route_prefix="/sheet")):
        yield f"{served.url}/sheet"


def test_a_sheet_holds_what_the_handle_answers(sheets: str) -> None:
    answer = httpx.get(sheets, params={"prompt": "a red ball", "seed": 5}, timeout=120)
    assert answer.status_code == 200, answer.text
    sheet = np.asarray(Image.open(io.BytesIO(answer.content))).astype(int)
    assert sheet.shape == (128, 3 * 128, 3)
    tcd = serve.get_app_handle("tcd")
    for index, loras in enumerate([(), (LoraWeight("papercut"),), (LoraWeight("ink"),)]):
        request = ImageRequest("a red ball", model="sd15", seed=5, loras=loras)
        image = tcd.generate.remote(request).result(timeout_s=60).images[0]
        tile = sheet[:, index * 128 : (index + 1) * 128]
        assert np.abs(tile - image).max() <= LEVELS


def test_what_is_wrong_comes_back_as_such(sheets: str) -> None:
    assert httpx.get(sheets, timeout=60).status_code == 400
    refused = httpx.get(sheets, params={"prompt": "a <lora:ink:1>"}, timeout=60)
    assert refused.status_code == 400
    assert "name style adapters in loras" in refused.text
