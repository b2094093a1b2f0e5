"""What a config says of how deployments scale."""

from collections.abc import Iterable, Iterator
from inspect import signature
from typing import Any

from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema

from deployments.diffusion.autoscaling import ByPendingWork, ByWork, SharedGpus
from deployments.jobs.autoscaling import ByOpenJobs

DIFFUSION_POLICIES = "deployments.diffusion.autoscaling"
POLICIES: dict[str, type] = {
    f"{DIFFUSION_POLICIES}.ByWork": ByWork,
    f"{DIFFUSION_POLICIES}.ByPendingWork": ByPendingWork,
    f"{DIFFUSION_POLICIES}.SharedGpus": SharedGpus,
    "deployments.jobs.autoscaling.ByOpenJobs": ByOpenJobs,
}
FACTORS = (  # Serve's, with their older names
    "upscaling_factor",
    "downscaling_factor",
    "smoothing_factor",
    "upscale_smoothing_factor",
    "downscale_smoothing_factor",
)


def misscaled(deployment: DeploymentSchema, place: str) -> Iterator[str]:
    """What our policies would refuse in Serve's controller, where a deploy hangs on it."""
    name, kwargs = _policy(deployment)
    if name.startswith(f"{DIFFUSION_POLICIES}.") and name not in POLICIES:
        known = ", ".join(POLICIES)
        yield f"{place}.autoscaling_config.policy: there is no {name}; there are {known}"
    if name not in POLICIES:
        return
    policy, where = POLICIES[name], f"{place}.autoscaling_config.policy.policy_kwargs"
    taken = signature(policy).parameters
    types = {key: one.annotation for key, one in taken.items()}
    for key, value in kwargs.items():
        if key in types and not _is(value, types[key]):
            yield f"{where}.{key}: it is {value!r}; it must be of type {types[key].__name__}"
            return
    try:
        policy(**kwargs)
    except (TypeError, ValueError) as error:
        yield f"{where}: {error}; there are {', '.join(types)}"
    if policy is SharedGpus:
        yield from _beyond_a_share(_config(deployment), f"{place}.autoscaling_config")


def mispooled(deployments: Iterable[tuple[str, DeploymentSchema]]) -> Iterator[str]:
    """Models of one pool that disagree about its GPUs, or have more floors than these. With the
    place of each."""
    pools: dict[str, list[tuple[str, int, int]]] = {}
    for place, deployment in deployments:
        name, kwargs = _policy(deployment)
        if POLICIES.get(name) is SharedGpus and not list(misscaled(deployment, place)):
            floor = int(_config(deployment).get("min_replicas", 1))
            pools.setdefault(kwargs["pool"], []).append((place, kwargs["gpus"], floor))
    for pool, members in pools.items():
        _, gpus, _ = members[0]
        for place, said, _ in members:
            if said != gpus:
                yield (
                    f"{place}.autoscaling_config.policy.policy_kwargs.gpus: pool {pool!r} has "
                    f"{gpus} by {members[0][0]}, and {said} here"
                )
        floors = sum(floor for _, _, floor in members)
        if floors > gpus:
            yield (
                f"{members[0][0]}.autoscaling_config: min_replicas of the models of pool {pool!r} "
                f"are {floors} together, more than its {gpus} gpus"
            )
        elif floors == gpus:
            for place, _, floor in members:
                if not floor:
                    yield (
                        f"{place}.autoscaling_config.min_replicas: it is 0, and would stay 0: "
                        f"those of the others in pool {pool!r} are all its {gpus} gpus"
                    )


def _beyond_a_share(config: dict[str, Any], place: str) -> Iterator[str]:
    """Keys of Serve's by which a model would have more GPUs of its pool than are its own."""
    for key in FACTORS:
        if config.get(key) not in (None, 1):
            yield f"{place}.{key}: it is {config[key]}; with SharedGpus it must be 1, or left out"
    first, floor = config.get("initial_replicas"), config.get("min_replicas", 1)
    if first not in (None, floor):
        yield (
            f"{place}.initial_replicas: it is {first}; with SharedGpus it must be {floor}, as "
            "min_replicas is, or left out"
        )


def _policy(deployment: DeploymentSchema) -> tuple[str, dict[str, Any]]:
    """Name, with dots, and arguments of the policy that a file names; empty if none."""
    policy = _config(deployment).get("policy") or {}
    return str(policy.get("policy_function", "")).replace(":", "."), policy.get(
        "policy_kwargs"
    ) or {}


def _config(deployment: DeploymentSchema) -> dict[str, Any]:
    said = deployment.autoscaling_config
    if isinstance(said, AutoscalingConfig):
        return said.model_dump(exclude_unset=True)
    return said if isinstance(said, dict) else {}


def _is(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)
