"""The router under Serve: adapters stay on one replica, move when that dies, and who finds no room
is asked of the other."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve import RunTarget, context
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.handle import DeploymentHandle

from configs.app import Limits, ModelUserConfig
from deployments.contracts.figures import EngineFigures
from deployments.contracts.jobs import ImageJob
from deployments.contracts.refusal import accepted
from deployments.diffusion.deployment import Diffusion
from graphs.model import DIFFUSION, ROUTER
from tests.conftest import STYLES, demo_loras
from tests.deployments.diffusion.engine.harness import eventually, image_job, styles
from tests.serving import Served, beside, plain_model

Handle = DeploymentHandle[Diffusion]


@contextmanager
def replicas(
    models: Path, name: str, count: int, limits: Limits, report_every_s: float
) -> Iterator[Handle]:
    """So many of a model with the demo's style adapters."""
    config = ModelUserConfig(loras=demo_loras(models, "sd15"), limits=limits)
    deployment = DIFFUSION.options(
        num_replicas=count,
        user_config=config.model_dump(),
        ray_actor_options={"num_cpus": 0.1},
        request_router_config={
            "request_router_class": ROUTER,
            "request_router_kwargs": {"load_s": 1000},
            "request_routing_stats_period_s": report_every_s,
        },
    )
    bound = deployment.bind(plain_model(models, "sd15", name))
    with beside(RunTarget(bound, name=f"model-{name}", route_prefix=None)):
        yield serve.get_app_handle(f"model-{name}")


def figures(handle: Handle) -> dict[str, EngineFigures]:
    """Of all replicas that answer, by replica."""

    async def asked() -> list[object]:
        broadcast = handle.broadcast("figures")
        return list(await broadcast.results_async(timeout_s=60, return_exceptions=True))

    said = asyncio.run(asked())
    return {one.replica: one for one in said if isinstance(one, EngineFigures)}


def styled(number: int, style: str) -> ImageJob:
    return image_job(f"{style} {number}", loras=styles(**{style: 1.0}), num_inference_steps=1)


def draw(handle: Handle, *jobs: ImageJob) -> None:
    """All at once."""
    answers = [handle.submit.remote(job) for job in jobs]
    for answer in answers:
        assert len(accepted(answer.result(timeout_s=120)).images) == 1


def loads(handle: Handle) -> int:
    return sum(one.lora_loads_total for one in figures(handle).values())


def test_adapters_stay_on_a_replica_and_move_when_it_dies(
    served: Served, demo_models: Path
) -> None:
    with replicas(demo_models, "routed", 3, Limits(), 0.5) as handle:
        assert eventually(lambda: len(figures(handle)) == 3, 60)
        for number in range(4):
            for style in STYLES:
                draw(handle, styled(number, style))
        assert loads(handle) == len(STYLES)
        draw(handle, *(styled(number, style) for style in STYLES for number in range(10, 14)))
        assert loads(handle) == len(STYLES), "nothing is worth another load, by `load_s`"

        draw(handle, *(image_job(f"plain {number}", seeds=(1,)) for number in range(12)))
        before = figures(handle)
        assert all(one.images_total for one in before.values()), "nobody is left out"

        # Calls of one request share Serve's id of it: none is left waiting, none left counted.
        one = context._RequestContext(_internal_request_id="of one request")
        calls: Any = context._serve_request_context
        token = calls.set(one)
        draw(handle, *(styled(number, style) for style in STYLES for number in range(15, 18)))
        calls.reset(token)
        assert loads(handle) == len(STYLES)

        before = figures(handle)
        draw(handle, styled(20, "ink"))
        after = figures(handle)
        (home,) = (name for name in after if after[name].images_total > before[name].images_total)
        actor = ReplicaID(home, DeploymentID("Diffusion", "model-routed")).to_full_id_str()
        ray.kill(ray.get_actor(actor, namespace=SERVE_NAMESPACE))
        for number in range(30, 36):
            draw(handle, styled(number, "ink"))
        assert home not in figures(handle)
        left = sum(one.lora_loads_total for name, one in after.items() if name != home)
        assert loads(handle) == left + 1


def test_who_finds_no_room_at_one_replica_is_asked_of_the_other(
    served: Served, demo_models: Path
) -> None:
    """The replica at which an adapter is at home is full, and the ingress has not heard of it."""
    never = 600.0
    with replicas(demo_models, "crowded", 2, Limits(max_pending=1), never) as handle:
        served.wait_until_ready("crowded")
        draw(handle, styled(0, "ink"))
        long = image_job(
            "long", loras=styles(ink=1.0), num_inference_steps=50, width=512, height=512
        )
        filled = handle.submit.remote(long)
        assert eventually(lambda: any(one.pending_images for one in figures(handle).values()), 30)
        body = {
            "model": "crowded",
            "prompt": "a red ball",
            "size": "64x64",
            "num_inference_steps": 1,
            "loras": [{"name": "ink"}],
        }

        def answered() -> bool:
            url = f"{served.url}/v1/images/generations"
            return httpx.post(url, json=body, timeout=60).status_code == 200

        # Until the directory has seen both replicas there may be a 429.
        assert eventually(answered, 30)
        assert any(one.pending_images for one in figures(handle).values()), (
            "the first is still full"
        )
        filled.cancel()  # type: ignore[no-untyped-call]
