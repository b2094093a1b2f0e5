"""The service under soak: `serve_config.yaml` with two models, in a Ray cluster of this process.

The cluster ends with the block. Its processes can be found and harmed, because this process has
joined it.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from configs.app import StorageArgs
from demo.service import ENVIRONMENT, Config, demo_config, free_port
from tests.soak.making import Target
from tests.soak.processes import wait_until

INSIDE = str(Path(__file__).with_name("inside"))  # what each Python of the cluster runs first
BUCKET = "pictures"
MODELS = ("sd15", "sdxl")
STYLES = ("papercut", "ink", "neon")
SIZES = ((64, 64), (64, 64), (72, 104), (128, 64))
REQUEST_TIMEOUT_S = 60.0
START_S = 240.0
CPUS = 12  # Ray's book-keeping only
STORE_BYTES = 200 * 2**20
ONE = {"min_replicas": 1, "max_replicas": 1}


@dataclass(frozen=True)
class Outside:
    """What the service depends on.

    Attributes:
        storage: of pictures by URL.
        keys: the file of named keys.
        clock: the file that says how far off the wall clock is.
        broken: the folder of those whose engine is to break.
        s3, hub: endpoints.
        s3_styles, hub_styles: further style adapters of `sd15`, by name: sources.
        s3_pictures: URIs.
    """

    storage: StorageArgs
    keys: Path
    clock: Path
    broken: Path
    s3: str
    hub: str
    s3_styles: dict[str, str]
    hub_styles: dict[str, str]
    s3_pictures: tuple[str, ...]


def target(outside: Outside) -> Target:
    """What can be asked of the service."""
    return Target(
        MODELS,
        "sd15",
        SIZES,
        STYLES,
        s3_styles=tuple(outside.s3_styles),
        hub_styles=tuple(outside.hub_styles),
        s3_pictures=outside.s3_pictures,
        stores=True,
    )


@contextmanager
def running(outside: Outside) -> Iterator[str]:
    """Starts it, waits until every model answers, and yields its URL.

    Raises TimeoutError if it does not come up.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="soak", dir="/tmp") as folder:
        os.environ.update(_environment(outside, Path(folder)))
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=CPUS,
            object_store_memory=STORE_BYTES,
            _temp_dir=folder,
            log_to_driver=False,
        )
        try:
            http = {"host": "127.0.0.1", "port": port}
            serve.start(proxy_location="HeadOnly", http_options=http)
            config = _config(outside) | {"http_options": http}
            client = _get_global_client()
            assert client is not None
            client.deploy_apps(ServeDeploySchema.model_validate(config))
            url = f"http://127.0.0.1:{port}"
            if not wait_until(lambda: is_ready(url, MODELS), START_S):
                raise TimeoutError(f"not ready within {START_S:g} s")
            yield url
        finally:
            serve.shutdown()
            ray.shutdown()


def is_ready(url: str, models: Sequence[str]) -> bool:
    """Whether the service answers, and each of these models."""
    try:
        answer = httpx.get(f"{url}/readyz", params={"models": ",".join(models)}, timeout=5)
        return answer.status_code == 200 and all(model in answer.text for model in models)
    except httpx.HTTPError:
        return False


def _environment(outside: Outside, folder: Path) -> dict[str, str]:
    """Of all processes of the cluster."""
    return {
        **ENVIRONMENT,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (INSIDE, os.environ.get("PYTHONPATH")))),
        "SOAK_CLOCK": str(outside.clock),
        "SOAK_BREAK": str(outside.broken),
        "AWS_ENDPOINT_URL": outside.s3,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "TCD_CACHE": str(folder / "tcd-cache"),
        "HF_ENDPOINT": outside.hub,
        "HF_HOME": str(folder / "hub-cache"),
    }


def _config(outside: Outside) -> Config:
    config = demo_config(MODELS)
    applications = config["applications"]
    assert isinstance(applications, list)
    service = next(a for a in applications if a["name"] == "tcd")
    service["args"] |= {
        "storage": outside.storage.model_dump(),
        "keys": {"file": str(outside.keys)},
        "allowed_s3_buckets": [BUCKET],
        "request_timeout_s": REQUEST_TIMEOUT_S,
    }
    for deployment in service["deployments"]:
        if deployment["name"] != "Ingress":
            deployment["autoscaling_config"] = ONE
    for name, replicas in (("sd15", 2), ("sdxl", 1)):
        application = next(a for a in applications if a["name"] == f"model-{name}")
        (deployment,) = application["deployments"]
        deployment["num_replicas"] = replicas
        user_config = deployment["user_config"]
        # Room for two of them: adapters come and go.
        user_config["limits"] = {**user_config["limits"], "lora_budget_mb": 4}
        if name == "sd15":
            user_config["loras"] = user_config["loras"] | outside.s3_styles | outside.hub_styles
    return config
