"""The service as `make demo` starts it, with one model or several of the benchmarks' own."""

import copy
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import yaml

from benchmarks.models import SIDE, Model
from demo.run import (
    OUT,
    START_TIMEOUT_S,
    _application,
    _config_for_one_model,
    _failed,
    _free_port,
)

# Ray's book-keeping only: idle models take no time, and few cores must do for all replicas.
LOGICAL_CPUS = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 8}'}


@contextmanager
def running_service(models: Sequence[Model]) -> Iterator[str]:
    """Starts the application with these models, and yields its URL."""
    OUT.mkdir(exist_ok=True)
    port = _free_port()
    config = OUT / "bench_config.yaml"
    config.write_text(_config(port, models))
    url = f"http://127.0.0.1:{port}"
    os.environ.update(LOGICAL_CPUS)
    with _application(config) as process:
        _wait_until_ready(url, process)
        yield url


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Silent, unlike the demo's: standard output is for results."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet, or holding the request until the ingress is up
        time.sleep(0.5)
    raise SystemExit(_failed("the service did not become ready"))


def _config(port: int, models: Sequence[Model]) -> str:
    config = yaml.safe_load(_config_for_one_model(port))
    service, demo_model = config["applications"]
    applications = [service]
    for model in models:
        application = copy.deepcopy(demo_model)
        application["name"] = f"model-{model.args.name}"
        defaults = {"width": SIDE, "height": SIDE}
        application["args"] = model.args.model_dump(mode="json") | {"defaults": defaults}
        (deployment,) = application["deployments"]
        deployment["user_config"]["loras"] = model.loras
        applications.append(application)
    return yaml.safe_dump(config | {"applications": applications}, sort_keys=False)
