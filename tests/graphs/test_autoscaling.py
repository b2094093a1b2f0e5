"""Replicas come with the work that waits, and go when it is done."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest
from ray.serve import RunTarget

from configs.app import Limits, ModelUserConfig
from graphs.model import DIFFUSION
from tests.graphs.test_model_applications import names, replica_pids, wait_until
from tests.serving import Served, beside, plain_model

TARGET_S = 1.0
HUNGRY = {
    "model": "grower",
    "prompt": "a red ball",
    "size": "128x128",
    "num_inference_steps": 50,
}

SMALL = {"model": "grower", "prompt": "a", "size": "64x64", "num_inference_steps": 1, "priority": 9}


@pytest.mark.deep  # minutes; by one replica: test_sleeping_model.py
def test_a_model_grows_and_shrinks(served: Served, demo_models: Path) -> None:
    args = plain_model(demo_models, "sd21", "grower")
    deployment = DIFFUSION.options(
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 2,
            "upscale_delay_s": 0,
            "downscale_delay_s": 2,
            "metrics_interval_s": 0.5,
            "look_back_period_s": 1,
            "policy": {
                "policy_function": "deployments.diffusion.autoscaling:ByWork",
                "policy_kwargs": {"target_s": TARGET_S},
            },
        },
        ray_actor_options={"num_cpus": 0.1},
        user_config=ModelUserConfig(limits=Limits()).model_dump(),
    )
    with beside(RunTarget(deployment.bind(args), name="model-grower", route_prefix=None)):
        wait_until(lambda: "grower" in names(served))
        assert len(replica_pids("model-grower")) == 1

        url = f"{served.url}/v1/images/generations"

        grown = Event()

        def ask(_: int) -> set[int]:
            """What it is answered, until there are enough replicas."""
            seen: set[int] = set()
            while not grown.is_set():
                seen.add(httpx.post(url, json=HUNGRY, timeout=300).status_code)
            return seen

        with ThreadPoolExecutor(8) as crowd:
            answers = [crowd.submit(ask, number) for number in range(8)]
            try:
                # Serve says that the application is being deployed; the first replica goes on.
                wait_until(
                    lambda: runs("model-grower", 2) and "grower" in names(served), timeout_s=150
                )
                os.kill(replica_pids("model-grower")[0], signal.SIGKILL)
                for _ in range(10):
                    assert "grower" in names(served)
                    assert httpx.post(url, json=SMALL, timeout=60).status_code == 200
            finally:
                grown.set()
            assert [answer.result() for answer in answers] == 8 * [{200}]
        wait_until(lambda: runs("model-grower", 1), timeout_s=60)


def runs(application: str, replicas: int) -> bool:
    return len(replica_pids(application)) == replicas
