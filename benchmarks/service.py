"""The service as `make demo` starts it, with one model or several of the benchmarks' own."""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.models import SIDE, Model
from demo.service import Config, demo_config, running

# Ray's book-keeping only: idle models take no time, and few cores must do for all replicas.
LOGICAL_CPUS = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 8}'}


@contextmanager
def running_service(models: Sequence[Model]) -> Iterator[str]:
    """Starts the application with these models, and yields its URL."""
    os.environ.update(LOGICAL_CPUS)
    with running(_config(models), "bench", tell=silent) as url:
        yield url


def silent(text: str) -> None:
    """Standard output is for results."""
    del text


def _config(models: Sequence[Model]) -> Config:
    config = demo_config(["sd15"])
    applications = config["applications"]
    assert isinstance(applications, list)
    service, demo_model = applications
    applications = [service]
    for model in models:
        application = copy.deepcopy(demo_model)
        application["name"] = f"model-{model.args.name}"
        defaults = {"width": SIDE, "height": SIDE}
        application["args"] = model.args.model_dump(mode="json") | {"defaults": defaults}
        (deployment,) = application["deployments"]
        deployment["user_config"]["loras"] = model.loras
        applications.append(application)
    return config | {"applications": applications}
