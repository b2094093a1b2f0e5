"""A model whose process stands still costs those who asked for it, and nobody else."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from configs.app import Limits
from tests.graphs.test_model_applications import replica_pids, wait_until
from tests.serving import Served, beside, model_target, plain_model

OTHERS = 40  # requests for the other model, before and during
LIMIT_S = 2


@pytest.mark.deep  # a minute
def test_a_silent_model_delays_nobody_else(served: Served, demo_models: Path) -> None:
    dumb = plain_model(demo_models, "sd15", "dumb")
    with beside(model_target(demo_models, dumb, Limits())):
        served.wait_until_ready("dumb")
        assert ask(served, "dumb").status_code == 200
        before = slowest(served)
        (pid,) = replica_pids("model-dumb")
        wait_until(lambda: served.engine_figure("images_total", "dumb") == 1)
        with stopped(pid):
            wait_until(lambda: availability(served)["dumb"] == "silent")
            assert slowest(served) < 2 * before + 0.5  # of seconds that it once cost
            started = time.monotonic()
            late = ask(served, "dumb", timeout_s=LIMIT_S)
            assert late.status_code == 408, late.text
            assert f"within {LIMIT_S} s" in late.json()["error"]["message"]
            assert time.monotonic() - started < LIMIT_S + 8
            # Whoever probes the ingress, and whoever probes the model.
            assert httpx.get(f"{served.url}/readyz", timeout=30).status_code == 200
            assert httpx.get(f"{served.url}/readyz?models=dumb", timeout=30).status_code == 503
            assert served.engine_figure("images_total", "dumb") == 1  # the last known
        served.wait_until_ready("dumb")
        assert ask(served, "dumb").status_code == 200
        assert replica_pids("model-dumb") == [pid]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def slowest(served: Served) -> float:
    """Seconds of the slowest but two of `OTHERS` requests for another model."""
    took = []
    for _ in range(OTHERS):
        started = time.monotonic()
        assert ask(served, "sd15").status_code == 200
        took.append(time.monotonic() - started)
    return sorted(took)[-3]


def ask(served: Served, model: str, **fields: object) -> httpx.Response:
    body = {"model": model, "prompt": "a", "size": "64x64", "num_inference_steps": 1, **fields}
    return httpx.post(f"{served.url}/v1/images/generations", json=body, timeout=60)


def availability(served: Served) -> dict[str, str]:
    told: dict[str, str] = httpx.get(f"{served.url}/readyz", timeout=30).json()["availability"]
    return told
