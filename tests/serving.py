"""The running service that tests of the graph share: one Ray cluster with two models on it."""

import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import ray
from ray import serve

from configs.app import Defaults, Limits, ModelUserConfig, ServiceArgs
from configs.families import FamilyName
from graphs.model import DIFFUSION
from graphs.service import build as build_service
from tests.conftest import demo_loras, model_args

SMALL_QUEUE = 3


@dataclass(frozen=True)
class Served:
    """A running service."""

    url: str

    def openai(self, max_retries: int = 0) -> openai.OpenAI:
        """The official client, which by itself retries nothing here."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=max_retries, timeout=60
        )

    def engine_figure(self, name: str, model: str) -> float:
        """One number of `/metrics`."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        for line in text.splitlines():
            if line.startswith(f"tcd_engine_{name}{{") and f'model="{model}"' in line:
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"{name} of {model} is not in /metrics")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def served(demo_models: Path) -> Iterator[Served]:
    """`sd15` with the usual limits, and `small`: an sdxl whose queue holds three images."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=8,
            object_store_memory=200 * 2**20,
            _temp_dir=folder,
            log_to_driver=False,
        )
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            run_model(demo_models, "sd15", "sd15", Limits(max_side=512))
            run_model(demo_models, "sdxl", "small", Limits(max_side=512, max_pending=SMALL_QUEUE))
            service = build_service(ServiceArgs(default_model="sd15", max_images=4))
            serve.run(service, name="tcd", route_prefix="/")
            yield Served(f"http://127.0.0.1:{port}")
        finally:
            serve.shutdown()
            ray.shutdown()


def run_model(models: Path, family: FamilyName, name: str, limits: Limits) -> None:
    config = ModelUserConfig(loras=demo_loras(models, family), limits=limits)
    deployment = DIFFUSION.options(user_config=config.model_dump())
    small = Defaults(width=128, height=128)
    args = model_args(models, family).model_copy(update={"name": name, "defaults": small})
    application = deployment.bind(args)
    serve.run(application, name=f"model-{name}", route_prefix=None)
