"""The same checks on the nodes of a cluster: a replica finds the files of its node.

Each application is looked at where its deployments may run, in its own `runtime_env`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.serve.schema import DeploymentSchema, ServeDeploySchema
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from graphs.check.accepted import Accepted, accepted
from graphs.check.agreement import deployments_of, not_on_machine
from graphs.check.files import wrong_files
from graphs.check.findings import Findings
from graphs.check.fits import unfit_files
from graphs.check.schemas import one_line
from graphs.model import DIFFUSION

PATIENCE_S = 300.0  # for all nodes together, environments made
_IN = re.compile(r"in\((.*)\)")


class NoCluster(Exception):
    """No Ray cluster answers. `str(error)` says where."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster, as Ray describes it."""

    id: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]

    def takes(self, options: Mapping[str, Any]) -> bool:
        """Whether a replica with these `ray_actor_options` may run there, when it is idle."""
        wanted = {
            "CPU": options.get("num_cpus") or 0,
            "GPU": options.get("num_gpus") or 0,
            "memory": options.get("memory") or 0,
            **(options.get("resources") or {}),
        }
        if kind := options.get("accelerator_type"):
            wanted[f"accelerator_type:{kind}"] = 0.001
        selector = options.get("label_selector") or {}
        enough = (self.resources.get(name, 0) >= amount for name, amount in wanted.items())
        labelled = (_matches(self.labels.get(key), value) for key, value in selector.items())
        return all(enough) and all(labelled)


def look_at_nodes(config: ServeDeploySchema, address: str) -> Findings:
    """What is wrong on the nodes of a cluster; each line ends with the nodes.

    Args:
        address: of the cluster; "auto": of that of this machine, or of `RAY_ADDRESS`.

    Raises `NoCluster`.
    """
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise NoCluster(f"no Ray cluster answers at {address!r}: {one_line(error)}") from error
    try:
        return _looked_at(config, _nodes())
    finally:
        ray.shutdown()


def _nodes() -> list[Node]:
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"], node["Labels"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def _looked_at(config: ServeDeploySchema, nodes: Sequence[Node]) -> Findings:
    found = Findings()
    asked: dict[ray.ObjectRef[list[str]], Node] = {}
    for application in config.applications:
        whole = accepted(application.model_dump(exclude_unset=True))
        options = _options(whole, application.deployments)
        homes = {name: [node for node in nodes if node.takes(options[name])] for name in options}
        for name, taking in homes.items():
            if not taking:
                found.unknown.append(
                    f"{whole.name}.{name}: no node that is there now takes {options[name]}"
                )
        for node in nodes:
            here = {name for name, taking in homes.items() if node in taking}
            if not here:
                continue
            look = _look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
                runtime_env=application.runtime_env,
            )
            asked[look.remote(whole.of(here), "Ingress" in here)] = node
    done, silent = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE_S)
    said: dict[str, list[str]] = {}
    for reference in done:
        try:
            lines = ray.get(reference)
        except Exception as error:  # whatever keeps a task from running there
            lines = [f"its checks cannot run there: {one_line(error)}"]
        for line in lines:
            said.setdefault(line, []).append(asked[reference].address)
    for reference in silent:
        said.setdefault(f"no answer within {PATIENCE_S:g} s", []).append(asked[reference].address)
    for line, where in said.items():
        found.wrong.append(f"{line} (node{'s'[: len(where) > 1]} {', '.join(sorted(where))})")
    return found


@ray.remote(num_cpus=0, max_retries=0)
def _look(application: Accepted, front: bool) -> list[str]:
    """What is wrong with an application on the node that runs this. `front`: the ingress may."""
    found = list(wrong_files(application))
    if application.service is not None and front:
        found += not_on_machine(application.name, application.service)
    return found or list(unfit_files(application))


def _options(
    application: Accepted, deployments: Sequence[DeploymentSchema]
) -> dict[str, dict[str, Any]]:
    """The `ray_actor_options` that the file gives each deployment of ours."""
    given = {
        each.name: each.ray_actor_options.model_dump(exclude_unset=True)
        for each in deployments
        if "ray_actor_options" in each.model_fields_set and each.ray_actor_options is not None
    }
    names: Sequence[str] = ()
    if application.model is not None:
        names = (DIFFUSION.name,)
    elif application.service is not None:
        names = deployments_of(application.service)
    return {name: given.get(name, {}) for name in names}


def _matches(label: str | None, selector: str) -> bool:
    """Whether a node's label is as Ray's selectors ask: `a`, `!a`, `in(a,b)`, `!in(a,b)`."""
    wanted = selector.removeprefix("!")
    several = _IN.fullmatch(wanted)
    values = {value.strip() for value in several[1].split(",")} if several else {wanted}
    return (label in values) != selector.startswith("!")
