"""What a change of a running service costs: the table of docs/operations.md, line by line.

Each change is deployed as `serve deploy` does it, while requests are asked all the time.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve

from configs.app import Limits, ModelArgs, ModelUserConfig
from tests.conftest import demo_loras
from tests.graphs.test_model_applications import replica_pids, wait_until
from tests.serving import Served, plain_model, serve_deploy

pytestmark = pytest.mark.deep  # minutes each; what one replica is told: diffusion/test_replica.py

NAME, APPLICATION = "changing", "model-changing"
START_S = 80  # a replica starts within this, on a busy machine


class Changing:
    """A model application that is changed while it is asked."""

    def __init__(self, served: Served, models: Path) -> None:
        self.url = served.url
        self.args = plain_model(models, "sd21", NAME)
        self.user_config = ModelUserConfig(limits=Limits(max_side=512)).model_dump()

    def deploy(
        self,
        args: ModelArgs | None = None,
        user_config: dict[str, Any] | None = None,
        /,
        **options: object,
    ) -> None:
        """What is not said is as it was when the model came."""
        serve_deploy(
            {
                "name": APPLICATION,
                "route_prefix": None,
                "import_path": "graphs.model:build",
                "args": (args or self.args).model_dump(),
                "deployments": [
                    {
                        "name": "Diffusion",
                        "ray_actor_options": {"num_cpus": 0.1},
                        "user_config": user_config or self.user_config,
                        **options,
                    }
                ],
            }
        )

    def remove(self) -> None:
        serve_deploy()

    def card(self) -> dict[str, Any]:
        """Its entry in the catalogue; empty while it has none."""
        cards = httpx.get(f"{self.url}/v1/models", timeout=30).json()["data"]
        return next((card for card in cards if card["id"] == NAME), {})

    def status(self) -> str:
        return serve.status().applications[APPLICATION].status.value

    def settle(self) -> None:
        """Until the last change is done."""
        wait_until(lambda: self.status() == "RUNNING", START_S)


class Asking:
    """Requests to the model, one after the other in each of a few threads."""

    def __init__(self, changing: Changing, threads: int = 3, **body: object) -> None:
        self._url = f"{changing.url}/v1/images/generations"
        self._body = {"model": NAME, "prompt": "a red ball", "num_inference_steps": 2, **body}
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]
        self.answers: list[httpx.Response] = []

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.answers) > 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        assert [answer.text for answer in self.answers if answer.status_code != 200] == []

    def more(self) -> None:
        """Until a few more requests, asked from now on, are answered."""
        enough = len(self.answers) + 2 * len(self._threads)
        wait_until(lambda: len(self.answers) >= enough)

    def _ask(self) -> None:
        while not self._done.wait(0.1):
            self.answers.append(httpx.post(self._url, json=self._body, timeout=120))


@pytest.fixture(scope="module")
def changing(served: Served, demo_models: Path) -> Iterator[Changing]:
    model = Changing(served, demo_models)
    model.deploy()
    wait_until(lambda: bool(model.card()), START_S)
    yield model
    model.remove()
    wait_until(lambda: APPLICATION not in serve.status().applications)


def test_adapters_limits_and_serves_options(changing: Changing, demo_models: Path) -> None:
    scaled = {"min_replicas": 1, "max_replicas": 1, "upscale_delay_s": 600}
    with Asking(changing) as asking:  # autoscaling has a policy: its begin replaces replicas
        changing.deploy(autoscaling_config=scaled)
        changing.settle()
        asking.more()
    before = replica_pids(APPLICATION)
    user_config = ModelUserConfig(
        loras=demo_loras(demo_models, "sd21"), limits=Limits(max_side=256)
    )
    with Asking(changing) as asking:
        options = {"max_ongoing_requests": 500, "health_check_timeout_s": 9}
        changing.deploy(None, user_config.model_dump(), autoscaling_config=scaled, **options)
        wait_until(lambda: changing.card()["limits"]["max_side"] == 256)
        asking.more()
        changing.deploy(autoscaling_config=scaled | {"max_replicas": 2})
        wait_until(lambda: changing.card()["limits"]["max_side"] == 512)
        asking.more()
        changing.settle()
    assert replica_pids(APPLICATION) == before


def test_new_args_with_one_replica(changing: Changing) -> None:
    changing.deploy()
    changing.settle()
    before = replica_pids(APPLICATION)
    defaults = changing.args.defaults.model_copy(update={"eta": 0.5})
    with Asking(changing) as asking:
        changing.deploy(changing.args.model_copy(update={"defaults": defaults}))
        changing.settle()
        wait_until(lambda: changing.card()["defaults"]["eta"] == 0.5)
        asking.more()
    (now,) = replica_pids(APPLICATION)
    assert now not in before


def test_args_that_are_refused(changing: Changing) -> None:
    changing.deploy()
    changing.settle()
    before = replica_pids(APPLICATION)
    with Asking(changing) as asking:
        changing.deploy(changing.args.model_copy(update={"dtype": "float8"}))
        wait_until(lambda: changing.status() == "DEPLOY_FAILED")
        assert "float8" in serve.status().applications[APPLICATION].message
        asking.more()
        changing.deploy()
        changing.settle()
        asking.more()
    assert replica_pids(APPLICATION) == before


def test_a_checkpoint_that_cannot_be_loaded(changing: Changing, demo_models: Path) -> None:
    changing.deploy()
    changing.settle()
    before = replica_pids(APPLICATION)
    nothing = str(demo_models / "loras")
    with Asking(changing) as asking:
        changing.deploy(changing.args.model_copy(update={"checkpoint": nothing}))
        wait_until(lambda: changing.status() == "DEPLOY_FAILED", 3 * START_S)
        message = serve.status().applications[APPLICATION].deployments["Diffusion"].message
        assert "replicas of the previous version keep running" in message
        asking.more()
        changing.deploy()
        changing.settle()
        asking.more()
    assert replica_pids(APPLICATION) == before


def test_a_user_config_that_is_refused(changing: Changing, served: Served) -> None:
    changing.deploy()
    changing.settle()
    before, limits = replica_pids(APPLICATION), changing.card()["limits"]
    with Asking(changing) as asking:
        changing.deploy(None, {"limits": {"min_side": 512, "max_side": 64}})
        wait_until(lambda: "min_side" in (changing.card().get("config_error") or ""))
        wait_until(lambda: served.engine_figure("config_error", NAME) == 1)
        asking.more()
        assert changing.status() == "RUNNING"
        assert changing.card()["limits"] == limits
        changing.deploy()
        wait_until(lambda: changing.card().get("config_error") is None)
        asking.more()
    assert replica_pids(APPLICATION) == before


def test_a_replica_goes_when_it_has_answered(changing: Changing) -> None:
    changing.deploy(num_replicas=2)
    changing.settle()
    assert len(replica_pids(APPLICATION)) == 2
    # Each takes longer than Serve needs to tell a replica to go.
    with Asking(changing, threads=8, size="512x512", num_inference_steps=20) as asking:
        changing.deploy(num_replicas=1)
        changing.settle()
        assert len(replica_pids(APPLICATION)) == 1
        asking.more()
