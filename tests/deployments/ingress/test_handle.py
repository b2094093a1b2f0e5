"""The same service, called by other Ray applications through its handle."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import cast

import numpy as np
import pytest
from pydantic import ValidationError
from ray import serve
from ray.serve.handle import DeploymentResponse

from deployments.contracts.errors import InvalidRequest, NotFound
from deployments.contracts.jobs import (
    Completed,
    FinishedImage,
    ImageRequest,
    LoraWeight,
    PartialImage,
    Progress,
    StreamEvent,
)
from tests.deployments.diffusion.engine.harness import eventually
from tests.serving import Served


def test_generate(served: Served) -> None:
    handle = serve.get_app_handle("tcd")
    request = ImageRequest("a red ball", model="sd15", n=2, seed=4, loras=(LoraWeight("ink", 0.5),))
    result = handle.generate.remote(request).result(timeout_s=60)
    assert result.model == "sd15"
    assert result.seeds == (4, 5)
    assert [image.shape for image in result.images] == [(128, 128, 3)] * 2
    assert result.images[0].dtype == np.uint8
    assert result.usage.denoising_steps == 8
    again = handle.generate.remote(request).result(timeout_s=60)
    difference = result.images[1].astype(int) - again.images[1].astype(int)
    assert np.abs(difference).max() <= 2


def test_stream(served: Served) -> None:
    handle = serve.get_app_handle("tcd").options(stream=True)
    request = ImageRequest("a red ball", partial_images=2, num_inference_steps=6)
    events = list(cast(Iterator[StreamEvent], handle.stream.remote(request)))
    assert [event.step for event in events if isinstance(event, Progress)] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events if isinstance(event, PartialImage)] == [2, 4]
    assert sum(isinstance(event, FinishedImage) for event in events) == 1
    assert isinstance(events[-1], Completed)


def test_errors_cross_the_handle_as_themselves(served: Served) -> None:
    handle = serve.get_app_handle("tcd")
    with pytest.raises(NotFound) as caught:
        handle.generate.remote(ImageRequest("a", model="nope")).result(timeout_s=60)
    assert caught.value.param == "model"
    with pytest.raises(InvalidRequest) as refused:
        handle.generate.remote(ImageRequest("a", width=32, height=32)).result(timeout_s=60)
    assert refused.value.param == "size"


def test_cancelling_the_call_cancels_the_work(served: Served) -> None:
    figure = partial(served.engine_figure, model="sd15")
    before = figure("cancelled_total")
    handle = serve.get_app_handle("tcd")
    slow = ImageRequest("a", num_inference_steps=50, width=512, height=512)

    async def call_and_leave() -> None:
        response = handle.generate.remote(slow)
        assert await asyncio.to_thread(eventually, lambda: figure("pending_images") > 0, 60)
        cast(DeploymentResponse[object], response).cancel()

    asyncio.run(call_and_leave())
    assert eventually(lambda: figure("cancelled_total") == before + 1, 60)


def test_a_request_is_checked_where_it_is_made() -> None:
    with pytest.raises(ValidationError, match="num_inference_steps"):
        ImageRequest("a", num_inference_steps=0)


def test_the_types_need_neither_torch_nor_ray() -> None:
    program = (
        "import sys; import deployments.contracts.jobs, deployments.contracts.api; "
        "sys.exit(bool({'torch', 'ray', 'diffusers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
