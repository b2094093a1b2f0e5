"""Models come, are shared out and go under one public name, while they are asked."""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.context import _get_global_client

from configs.app import ServiceArgs
from tests.graphs.test_model_applications import replica_pids, wait_until
from tests.serving import Served, plain_model, serve_deploy

pytestmark = pytest.mark.deep  # minutes; how a name is drawn: configs/test_names.py

SERVICE, PREFIX = "named", "/named"
OLD, NEW, PUBLIC = "pictures-1", "pictures-2", "pictures"
START_S = 80
SHARE = {OLD: 3, NEW: 1}
ENOUGH = 200


class Named:
    """A service of its own over models that have one name."""

    def __init__(self, served: Served, models: Path) -> None:
        self.url = served.url + PREFIX
        self._models = models
        self._running: list[str] = []
        self._names: dict[str, Any] = {}

    def deploy(self, *models: str, **names: object) -> None:
        """As `serve deploy` does it."""
        small = {"ray_actor_options": {"num_cpus": 0.01}}
        service = {
            "name": SERVICE,
            "route_prefix": PREFIX,
            "import_path": "graphs.service:build",
            "args": ServiceArgs(discovery_period_s=0.5).model_dump(mode="json"),
            "deployments": [
                {"name": "Directory", "user_config": names, **small},
                *({"name": name, **small} for name in ("Ingress", "MapStore", "JobWorker")),
                {"name": "JobStore", **small},
                {
                    "name": "Canny",
                    "num_replicas": 1,
                    "autoscaling_config": None,
                    **small,
                },
            ],
        }
        applications = [
            {
                "name": f"model-{model}",
                "route_prefix": None,
                "import_path": "graphs.model:build",
                "args": plain_model(self._models, "sd21", model).model_dump(),
                "deployments": [{"name": "Diffusion", **small}],
            }
            for model in models
        ]
        serve_deploy(service, *applications)

    def remove(self) -> None:
        serve_deploy()

    def ask(self) -> httpx.Response:
        body = {"model": PUBLIC, "prompt": "a red ball", "size": "64x64", "num_inference_steps": 1}
        return httpx.post(f"{self.url}/v1/images/generations", json=body, timeout=120)

    def ready(self, *models: str) -> bool:
        asked = httpx.get(f"{self.url}/readyz", params={"models": ",".join(models)}, timeout=30)
        return asked.status_code == 200

    def fault(self) -> float:
        """As `/metrics` has it."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        (line,) = (one for one in text.splitlines() if one.startswith("tcd_names_config_error "))
        return float(line.split()[1])

    def pids(self) -> set[int]:
        """Of all its processes but the models'."""
        client = _get_global_client()
        assert client is not None
        deployments = client.get_serve_details()["applications"][SERVICE]["deployments"].values()
        replicas = (replica for deployment in deployments for replica in deployment["replicas"])
        return {replica["pid"] for replica in replicas if replica["state"] == "RUNNING"}


class Asking:
    """Requests for the public name, one after the other in each of a few threads."""

    def __init__(self, named: Named) -> None:
        self._named = named
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]
        self.answers: list[httpx.Response] = []

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def models(self, last: int) -> Counter[str]:
        """Who made the last so many."""
        answers = self.answers[-last:]
        assert [answer.text for answer in answers if answer.status_code != 200] == []
        return Counter(str(answer.json()["model"]) for answer in answers)

    def more(self, count: int) -> Counter[str]:
        """Who makes so many, asked from now on."""
        enough = len(self.answers) + count + len(self._threads)
        wait_until(lambda: len(self.answers) >= enough, START_S)
        return self.models(count)

    def _ask(self) -> None:
        while not self._done.is_set():
            self.answers.append(self._named.ask())


@pytest.fixture
def named(served: Served, demo_models: Path) -> Iterator[Named]:
    named = Named(served, demo_models)
    try:
        yield named
    finally:
        named.remove()
        wait_until(lambda: SERVICE not in serve.status().applications, START_S)


@pytest.mark.timeout(600)
def test_models_come_are_shared_out_and_go(named: Named) -> None:
    """No request fails, and no process but the models' ends or begins."""
    named.deploy(OLD, aliases={PUBLIC: OLD})
    wait_until(lambda: named.ready(PUBLIC), START_S)
    before = named.pids()
    with Asking(named) as asking:
        assert set(asking.more(5)) == {OLD}
        named.deploy(OLD, NEW, aliases={PUBLIC: SHARE})  # the new one has only begun to start
        assert named.ready(PUBLIC)
        assert set(asking.more(5)) == {OLD}
        wait_until(lambda: named.ready(NEW), START_S)
        wait_until(lambda: NEW in asking.models(20), START_S)
        made = asking.more(ENOUGH)
        assert made.keys() == {OLD, NEW}
        assert abs(made[NEW] / made.total() - 0.25) < 0.12  # four standard deviations
        (old,) = replica_pids(f"model-{OLD}")
        named.deploy(OLD, NEW, aliases={PUBLIC: OLD})  # it was not good: back
        wait_until(lambda: NEW not in asking.models(40), START_S)
        assert replica_pids(f"model-{OLD}") == [old]
        named.deploy(OLD, NEW, aliases={PUBLIC: NEW})
        wait_until(lambda: OLD not in asking.models(40), START_S)
        named.deploy(NEW, aliases={PUBLIC: NEW})
        wait_until(lambda: f"model-{OLD}" not in serve.status().applications, START_S)
        assert set(asking.more(5)) == {NEW}
    assert {answer.status_code for answer in asking.answers} == {200}
    assert named.pids() == before


def test_names_that_are_refused_change_nothing(named: Named) -> None:
    named.deploy(OLD, aliases={PUBLIC: OLD})
    wait_until(lambda: named.ready(PUBLIC), START_S)
    before = named.pids()
    named.deploy(OLD, aliases={PUBLIC: "other", "other": OLD})
    wait_until(lambda: named.fault() == 1, START_S)
    assert named.ask().json()["model"] == OLD
    named.deploy(OLD, aliases={PUBLIC: OLD})
    wait_until(lambda: named.fault() == 0, START_S)
    assert named.pids() == before
