"""A model without replicas sleeps until it is asked for; looking at it wakes it not."""

import time
from pathlib import Path

import httpx
import pytest
from ray import serve
from ray.serve import RunTarget

from configs.app import Limits, ModelUserConfig
from graphs.model import DIFFUSION
from tests.graphs.test_model_applications import names, wait_until
from tests.graphs.test_silent_model import ask, availability
from tests.serving import Served, beside, plain_model

LOOKED_AT_S = 6


def test_a_model_sleeps_until_it_is_asked_for(served: Served, demo_models: Path) -> None:
    args = plain_model(demo_models, "sd21", "dozer")
    deployment = DIFFUSION.options(
        autoscaling_config={
            "min_replicas": 0,
            "initial_replicas": 0,
            "max_replicas": 1,
            "upscale_delay_s": 0,
            "downscale_delay_s": 1,
            "downscale_to_zero_delay_s": 1,
            "metrics_interval_s": 0.5,
            "look_back_period_s": 1,
            "policy": {"policy_function": "deployments.diffusion.autoscaling:ByWork"},
        },
        ray_actor_options={"num_cpus": 0.1},
        user_config=ModelUserConfig(limits=Limits()).model_dump(),
    )
    with beside(RunTarget(deployment.bind(args), name="model-dozer", route_prefix=None)):
        served.wait_until_ready("dozer")  # it can answer, after all
        looked_at(served)
        assert "dozer" not in names(served)  # nobody knows yet what it is

        late = ask(served, "dozer", timeout_s=0.5)
        assert late.status_code == 503, late.text
        error = late.json()["error"]
        assert error["code"] == "not_ready"
        assert "is being started and was not ready within 0.5 s; try again" in error["message"]
        assert "x-should-retry" not in late.headers

        assert ask(served, "dozer", timeout_s=60).status_code == 200
        wait_until(lambda: "dozer" in names(served))
        wait_until(lambda: availability(served)["dozer"] == "asleep")
        assert "dozer" in names(served)
        looked_at(served)


def looked_at(served: Served) -> None:
    """It sleeps on under everything but a request for it."""
    until = time.monotonic() + LOOKED_AT_S
    while time.monotonic() < until:
        for path in ("readyz?models=dozer", "metrics", "v1/models", "v1/models/sd15"):
            assert httpx.get(f"{served.url}/{path}", timeout=30).status_code == 200
        assert ask(served, "sd15").status_code == 200
        assert availability(served)["dozer"] == "asleep"
        states = serve.status().applications["model-dozer"].deployments["Diffusion"].replica_states
        if {state for state in states if state != "STOPPING"}:
            pytest.fail(f"it was started: {states}")
        time.sleep(0.2)
