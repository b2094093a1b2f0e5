"""Models come, die and go in applications of their own, while the others serve."""

import base64
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from ray import serve
from ray.serve.context import _get_global_client

from configs.app import Limits
from tests.serving import Served, model_target, plain_model

BODY = {
    "model": "guest",
    "prompt": "a red ball",
    "size": "256x256",
    "num_inference_steps": 50,
    "seed": 1,
}


def test_a_model_comes_dies_and_goes_while_another_serves(
    served: Served, demo_models: Path
) -> None:
    neighbour = replica_pids("model-sd15")
    with Neighbour(served) as other:
        guest = plain_model(demo_models, "sd15", "guest")
        serve.run_many([model_target(demo_models, guest, Limits())])
        wait_until(lambda: "guest" in names(served))
        first = httpx.post(f"{served.url}/v1/images/generations", json=BODY, timeout=120)
        assert first.status_code == 200

        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{served.url}/v1/images/generations", json=BODY, timeout=120)
            )
        )
        asking.start()
        wait_until(lambda: served.engine_figure("running_rows", "guest") == 1)
        (victim,) = replica_pids("model-guest")
        os.kill(victim, signal.SIGKILL)
        asking.join()
        # Accepted work is done again by the replica that takes the dead one's place.
        assert answers[0].status_code == 200, answers[0].text
        assert picture(answers[0]) == picture(first)
        assert replica_pids("model-guest") != [victim]

        serve.delete("model-guest")
        wait_until(lambda: "guest" not in names(served))
        gone = httpx.post(f"{served.url}/v1/images/generations", json=BODY, timeout=60)
        assert gone.status_code == 404
    assert other.failures == []
    assert other.images > 3
    assert replica_pids("model-sd15") == neighbour


class Neighbour:
    """Asks another model for images all the while, and notes what fails."""

    def __init__(self, served: Served) -> None:
        self._url = f"{served.url}/v1/images/generations"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.failures: list[str] = []
        self.images = 0

    def __enter__(self) -> "Neighbour":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._done.wait(0.5):
            answer = httpx.post(self._url, json={"model": "sd15", "prompt": "a cat"}, timeout=60)
            if answer.status_code != 200:
                self.failures.append(answer.text)
            self.images += 1


def names(served: Served) -> list[str]:
    return [card["id"] for card in httpx.get(f"{served.url}/v1/models", timeout=30).json()["data"]]


def picture(answer: httpx.Response) -> bytes:
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def replica_pids(application: str) -> list[int]:
    client = _get_global_client()
    assert client is not None
    details = client.get_serve_details()
    replicas = details["applications"][application]["deployments"]["Diffusion"]["replicas"]
    return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING"]


def wait_until(condition: Callable[[], bool], timeout_s: float = 90) -> None:
    """Looks of `serve.status()` take what is waited for a good part of a core: they are a fifth of
    the time at most."""
    deadline = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        if condition():
            return
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(max(0.05, 4 * (time.monotonic() - began)))
