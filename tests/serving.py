"""The running service that tests of the graph share: one Ray cluster with the demo's models."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx._config
import openai
import pytest
import ray
from ray import serve
from ray.serve import Application, RunTarget
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from configs.app import (
    ControlArgs,
    Defaults,
    IpAdapterArgs,
    Limits,
    ModelArgs,
    ModelUserConfig,
    PreprocessorArgs,
    ServiceArgs,
)
from configs.families import FamilyName
from demo.service import ENVIRONMENT, free_port
from graphs.model import DIFFUSION
from graphs.service import build as build_service
from tests.conftest import demo_loras

# httpx waits five seconds for an answer unless it is told. A busy machine may take longer.
httpx._config.DEFAULT_TIMEOUT_CONFIG.read = 60.0

SMALL_QUEUE = 3
# What Ray is told that there are. Those of `served` ask for 9.6; the rest is for replicas that its
# preprocessors and job workers add, and for what tests deploy beside them.
CPUS = 24
MAX_BODY_BYTES = 4 * 2**20
IP_ADAPTERS = {
    "sd15": "models/ip-adapter_sd15.safetensors",
    "sdxl": "sdxl_models/ip-adapter_sdxl.safetensors",
}
PLUS_ADAPTER = "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors"  # of sd15's encoder
IMAGE_ENCODERS = {"sd15": "models/image_encoder", "sdxl": "sdxl_models/image_encoder"}


@dataclass(frozen=True)
class Served:
    """A running service, and where Serve writes its logs."""

    url: str
    logs: Path | None = None

    def openai(self, max_retries: int = 0) -> openai.OpenAI:
        """The official client, which by itself retries nothing here."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=max_retries, timeout=120
        )

    def wait_until_ready(self, *models: str, timeout_s: float = 60) -> None:
        """Returns when the ingress knows that all of these models can answer."""
        deadline = time.monotonic() + timeout_s
        url = f"{self.url}/readyz?models={','.join(models)}"
        while (answer := httpx.get(url, timeout=30)).status_code != 200:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.3)

    def engine_figure(self, name: str, model: str) -> float:
        """One number of an engine in `/metrics`."""
        return self.figure(f"tcd_engine_{name}", f'model="{model}"')

    def figure(self, name: str, label: str) -> float:
        """One number of `/metrics`; 0 if it is not there yet."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        for line in text.splitlines():
            if line.startswith(f"{name}{{") and label in line:
                return float(line.rpartition(" ")[2])
        return 0.0


def plain_model(models: Path, family: FamilyName, name: str) -> ModelArgs:
    """A base checkpoint with its TCD-LoRA, making 128x128 pictures."""
    checkpoints = {"animagine": "sdxl-animagine", "sdxl-inpainting": "sdxl-inpainting"}
    return ModelArgs(
        name=name,
        family=family,
        checkpoint=str(models / checkpoints.get(name, family)),
        tcd_lora=str(models / "tcd-lora" / family),
        dtype="float32",
        device="cpu",
        defaults=Defaults(width=128, height=128),
    )


def full_model(models: Path, family: FamilyName, name: str) -> ModelArgs:
    """The same with depth and canny ControlNets and an IP-Adapter; sdxl with two, by name."""
    nets = models / "controlnet" / family
    motion = str(models / "motion-adapter" / "sd15") if family == "sd15" else None
    adapters = models / "ip-adapter"
    adapter = IpAdapterArgs(adapter=str(adapters / IP_ADAPTERS[family]), image_encoder=family)
    plus = IpAdapterArgs(adapter=str(adapters / PLUS_ADAPTER), image_encoder="sd15")
    several = {"base": adapter, "plus": plus} if family == "sdxl" else {}
    return plain_model(models, family, name).model_copy(
        update={
            "controls": {k: ControlArgs(source=str(nets / k)) for k in ("depth", "canny")},
            "ip_adapter": None if several else adapter,
            "ip_adapters": several,
            "motion_adapter": motion,
        }
    )


@pytest.fixture(scope="session")
def served(demo_models: Path) -> Iterator[Served]:
    """`sd15` and `sdxl` with everything, the guide's `sdxl-inpainting` and `animagine`, and
    `small`: an sd21 whose queue holds three images."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        os.environ.update(ENVIRONMENT)
        os.environ["TMPDIR"] = folder  # of what replicas keep for a while
        # For replicas that speak to moto's S3 server, which takes any key.
        os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "testing"
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=CPUS,
            object_store_memory=200 * 2**20,
            _temp_dir=folder,
            log_to_driver=False,
        )
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            usual = Limits(max_side=512, max_frames=48)
            models = [
                full_model(demo_models, "sd15", "sd15"),
                full_model(demo_models, "sdxl", "sdxl"),
                plain_model(demo_models, "sdxl", "sdxl-inpainting"),
                plain_model(demo_models, "sdxl", "animagine"),
            ]
            small = plain_model(demo_models, "sd21", "small")
            serve.run_many(
                [
                    RunTarget(service(demo_models), name="tcd", route_prefix="/"),
                    *(model_target(demo_models, args, usual) for args in models),
                    model_target(demo_models, small, Limits(max_pending=SMALL_QUEUE)),
                ]
            )
            running = Served(f"http://127.0.0.1:{port}", Path(folder) / "session_latest/logs/serve")
            running.wait_until_ready(*(args.name for args in (*models, small)))
            yield running
        finally:
            serve.shutdown()
            ray.shutdown()


def service(models: Path) -> Application:
    """The ingress with all preprocessors."""
    encoders = {
        name: PreprocessorArgs(checkpoint=str(models / "ip-adapter" / folder), device="cpu")
        for name, folder in IMAGE_ENCODERS.items()
    }
    return build_service(
        ServiceArgs(
            default_model="sd15",
            aliases={"gpt-image-1": "sd15"},
            max_images=4,
            max_body_bytes=MAX_BODY_BYTES,
            max_image_pixels=1024 * 1024,
            depth=PreprocessorArgs(checkpoint=str(models / "dpt-hybrid"), device="cpu"),
            image_encoders=encoders,
        )
    )


@contextmanager
def beside(*targets: RunTarget) -> Iterator[None]:
    """Runs applications beside those of `served`, and deletes them, also such as never came up."""
    try:
        serve.run_many(list(targets))
        yield
    finally:
        for target in targets:
            serve.delete(target.name)


def serve_deploy(*applications: dict[str, Any]) -> None:
    """As `serve deploy` does it with a file of these applications; it is not waited for."""
    client = _get_global_client()
    assert client is not None
    config = ServeDeploySchema.model_validate({"applications": applications})
    client.deploy_apps(config, _blocking=False)


def model_target(models: Path, args: ModelArgs, limits: Limits) -> RunTarget:
    """A model application of the name that the ingress looks for."""
    motions = {
        name: str(models / "motion-loras" / f"{name}.safetensors")
        for name in ("zoom-in", "pan-left")
        if args.motion_adapter is not None
    }
    loras, place = demo_loras(models, args.family), None
    if args.name == "animagine":  # lists one, and has the others by name
        loras, place = {"papercut": loras["papercut"]}, str(models / "loras" / args.family)
    config = ModelUserConfig(loras=loras, loras_from=place, motion_loras=motions, limits=limits)
    deployment = DIFFUSION.options(user_config=config.model_dump())
    return RunTarget(deployment.bind(args), name=f"model-{args.name}", route_prefix=None)
