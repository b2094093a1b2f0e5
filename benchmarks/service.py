"""The service as `make demo` starts it, with one model or several of the benchmarks' own."""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.models import SIDE, Model
from demo.service import Config, Running, demo_config, running

# Ray's book-keeping only: idle models take no time, and few cores must do for all replicas.
LOGICAL_CPUS = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 8}'}


@dataclass(frozen=True)
class Tuning:
    """What the models' deployments have beyond the demo's.

    Attributes:
        limits: of their `user_config`.
        threads: of torch, in each replica; `None`: as many as Ray gives it CPUs, here one.
        compile: as in `ModelArgs`.
    """

    limits: dict[str, float] = field(default_factory=dict)
    replicas: int = 1
    threads: int | None = None
    compile: str = "off"


AS_IN_THE_DEMO = Tuning()


@contextmanager
def running_service(models: Sequence[Model]) -> Iterator[str]:
    """Starts the application with these models, and yields its URL."""
    with tuned_service(models, AS_IN_THE_DEMO) as service:
        yield service.url


@contextmanager
def tuned_service(models: Sequence[Model], tuning: Tuning) -> Iterator[Running]:
    """Starts the application with these models, tuned so."""
    os.environ.update(LOGICAL_CPUS)
    with running(_config(models, tuning), "bench", tell=silent) as service:
        yield service


def silent(text: str) -> None:
    """Standard output is for results."""
    del text


def _config(models: Sequence[Model], tuning: Tuning) -> Config:
    config = demo_config(["sd15"])
    applications = config["applications"]
    assert isinstance(applications, list)
    service, demo_model = applications
    applications = [service]
    for model in models:
        application = copy.deepcopy(demo_model)
        application["name"] = f"model-{model.args.name}"
        defaults = {"width": SIDE, "height": SIDE}
        args = model.args.model_dump(mode="json")
        application["args"] = args | {"defaults": defaults, "compile": tuning.compile}
        (deployment,) = application["deployments"]
        deployment["user_config"]["loras"] = model.loras
        deployment["user_config"]["limits"].update(tuning.limits)
        deployment["num_replicas"] = tuning.replicas
        if tuning.threads is not None:
            variables = {"OMP_NUM_THREADS": str(tuning.threads)}
            deployment["ray_actor_options"]["runtime_env"] = {"env_vars": variables}
        applications.append(application)
    return config | {"applications": applications}
