"""Replicas under Serve: a broken one is gone at once, and a wrong user_config harms none."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import cast

import pytest
from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from configs.app import Limits, ModelArgs, ModelUserConfig
from deployments.contracts.cards import ModelCard
from deployments.contracts.errors import EngineFault, GenerationFailed, InvalidRequest
from deployments.contracts.figures import EngineFigures
from deployments.contracts.jobs import (
    Completed,
    FailedImage,
    FinishedImage,
    ImageJob,
    ImageResult,
    StreamEvent,
)
from deployments.contracts.refusal import Refusal, accepted
from deployments.diffusion.deployment import Diffusion
from graphs.model import DIFFUSION
from tests.conftest import demo_loras
from tests.deployments.diffusion.engine.harness import UnetCall, eventually, image_job, tap_unet
from tests.serving import Served, plain_model

ODD, GONE = 666, 667  # seeds: of an image whose step raises, and of one that breaks the engine
NAME = "breaking"
CLIENTS = 12
Handle = DeploymentHandle[Diffusion]


class Breaking(Diffusion):
    """The same, with seeds that break it."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        broken = False

        def tap(call: UnetCall) -> Tensor:
            nonlocal broken
            broken = broken or bool(call.rows_of(GONE))
            if broken:
                raise RuntimeError("the device is gone")
            if call.rows_of(ODD):
                raise ValueError("an odd row")
            return call.run()

        tap_unet(self._engine, tap)


def run(models: Path, user_config: dict[str, object]) -> Handle:
    """Deploys two replicas, or gives those that run another configuration."""
    deployment = DIFFUSION.options(
        func_or_class=Breaking,
        name="Diffusion",
        version="1",  # without one, `serve.run` replaces all replicas, as `serve deploy` does not
        num_replicas=2,
        user_config=user_config,
        _internal=True,
    )
    bound = deployment.bind(plain_model(models, "sd15", NAME))
    return serve.run(bound, name=NAME, route_prefix=None)


def good_config(models: Path, **limits: int) -> dict[str, object]:
    """What the replicas begin with."""
    config = ModelUserConfig(loras=demo_loras(models, "sd15"), limits=Limits(**limits))
    return config.model_dump()


@pytest.fixture(scope="module")
def replicas(served: Served, demo_models: Path) -> Iterator[Handle]:
    """Two, apart from the service's own models."""
    yield run(demo_models, good_config(demo_models))
    serve.delete(NAME)


def submit(handle: Handle, job: ImageJob) -> ImageResult:
    answer: ImageResult | Refusal = handle.submit.remote(job).result(timeout_s=60)
    return accepted(answer)


def stream(handle: Handle, job: ImageJob) -> list[StreamEvent | Refusal]:
    response = handle.options(stream=True).stream.remote(job)
    return list(cast(Iterable[StreamEvent | Refusal], response))


def ids(handle: Handle, calls: int = 12) -> dict[str, EngineFigures]:
    """Figures of the replicas that answer, by replica."""
    answers = [handle.figures.remote() for _ in range(calls)]
    figures = [answer.result(timeout_s=60) for answer in answers]
    return {one.replica: one for one in figures}


def test_the_other_images_of_a_job_come_back_and_the_failed_one_is_named(
    replicas: Handle, served: Served
) -> None:
    result = submit(replicas, image_job("odd one", seeds=(1, ODD, 3), num_inference_steps=2))
    assert result.seeds == (1, 3)
    assert len(result.images) == 2
    (failed,) = result.failed
    assert failed.image_index == 1
    assert isinstance(failed.error, GenerationFailed)
    assert "an odd row" in str(failed.error)
    assert result.usage.denoising_steps == 2 * 2

    with pytest.raises(GenerationFailed, match="an odd row"):
        submit(replicas, image_job("all odd", seeds=(ODD, ODD)))

    events = stream(replicas, image_job("stream", seeds=(1, ODD)))
    assert [e.image_index for e in events if isinstance(e, FailedImage)] == [1]
    assert [e.image_index for e in events if isinstance(e, FinishedImage)] == [0]
    assert isinstance(events[-1], Completed)
    events = stream(replicas, image_job("all odd", seeds=(ODD,)))
    assert isinstance(events[-1], Refusal)
    assert isinstance(events[-1].error, GenerationFailed)

    with pytest.raises(InvalidRequest):
        submit(replicas, image_job("refused", num_frames=4))
    assert served.logs is not None
    text = "".join(log.read_text() for log in served.logs.glob(f"replica_{NAME}_*.log"))
    (line,) = [line for line in text.splitlines() if "job refused: " in line]
    assert line.endswith("InvalidRequest: in model")  # words might quote the prompt
    assert "job odd one, image 1: GenerationFailed: a step of the image failed" in text


def test_a_wrong_user_config_changes_nothing_that_runs(replicas: Handle, demo_models: Path) -> None:
    assert eventually(lambda: len(ids(replicas)) == 2, 60)
    before = ids(replicas)
    run(demo_models, {"limits": {"max_batch": 0}})
    assert eventually(lambda: all(f.config_error for f in ids(replicas).values()), 30)
    # One that takes its configuration is not asked meanwhile.
    assert eventually(lambda: set(ids(replicas)) == set(before), 30)
    card: ModelCard = replicas.describe.remote().result(timeout_s=60)
    assert "max_batch" in (card.config_error or "")
    assert card.loras
    assert len(submit(replicas, image_job("still", num_inference_steps=1)).images) == 1

    run(demo_models, good_config(demo_models, max_pending=77))
    assert eventually(lambda: not any(f.config_error for f in ids(replicas).values()), 30)
    assert eventually(lambda: set(ids(replicas)) == set(before), 30)
    card = replicas.describe.remote().result(timeout_s=60)
    assert card.config_error is None
    assert card.limits.max_pending == 77


async def _ask(handle: Handle, job: ImageJob, seen: Counter[str]) -> None:
    """As the ingress asks: of another replica, once, if the first has died."""
    for attempt in range(2):
        try:
            answer = await handle.submit.remote(replace(job, job_id=f"{job.job_id}-{attempt}"))
        except ActorDiedError:
            seen["died"] += 1
            continue
        except Exception as error:
            seen[type(error).__name__] += 1
            return
        seen[type(answer.error).__name__ if isinstance(answer, Refusal) else "made"] += 1
        return
    seen["failed"] += 1


async def _load(handle: Handle, seconds: float, break_after_s: float) -> Counter[str]:
    seen: Counter[str] = Counter()
    end = monotonic() + seconds

    async def client(name: str) -> None:
        asked = 0
        while monotonic() < end:
            await _ask(handle, image_job(f"{name}-{asked}", num_inference_steps=4), seen)
            asked += 1

    async def breaker() -> None:
        await asyncio.sleep(break_after_s)
        with pytest.raises(ActorDiedError):
            await handle.submit.remote(image_job("gone", seeds=(GONE,)))
        seen["broken"] += 1

    await asyncio.gather(breaker(), *(client(f"client {n}") for n in range(CLIENTS)))
    return seen


def test_an_engine_fault_under_load_fails_no_request(replicas: Handle, served: Served) -> None:
    before = ids(replicas)
    seen = asyncio.run(_load(replicas, seconds=12, break_after_s=3))
    assert seen["broken"] == 1
    assert seen["made"] > 0
    assert set(seen) <= {"made", "broken", "died"}, seen
    assert 0 < seen["died"] <= 2 * CLIENTS
    assert eventually(lambda: len(set(ids(replicas)) - set(before)) == 1, 120)
    assert served.logs is not None
    text = "".join(log.read_text() for log in served.logs.glob(f"replica_{NAME}_*.log"))
    assert "the engine broke; this replica ends" in text
    assert "RuntimeError (what it says is not logged" in text  # it might quote a prompt
    assert EngineFault.__name__ not in seen
