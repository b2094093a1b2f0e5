"""The same checks on the nodes of a cluster: a replica finds the files of its node.

Each application is looked at where its deployments may run, in its own `runtime_env`.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError
from ray.serve._private.build_app import build_app
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from graphs.check.accepted import Accepted, accepted
from graphs.check.agreement import not_on_machine
from graphs.check.files import wrong_files
from graphs.check.findings import Findings
from graphs.check.fits import unfit_files
from graphs.check.schemas import one_line
from graphs.model import DIFFUSION
from graphs.service import build

PATIENCE_S = 600.0  # for an application on all nodes, environments made
FRONT = "Ingress"  # whose nodes have keys, certificates and secrets
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
    except Exception as error:  # an address that is none, a token that is refused, another release
        raise NoCluster(f"no Ray cluster answers at {address!r}: {one_line(error)}") from error
    found = Findings()
    try:
        nodes = [
            Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"], node["Labels"])
            for node in ray.nodes()
            if node["Alive"]
        ]
        for application in config.applications:  # in turn: each may read much
            _look_at(application, nodes, found)
    finally:
        ray.shutdown()
    return found


def _look_at(application: ServeApplicationSchema, nodes: Sequence[Node], found: Findings) -> None:
    """One application, wherever its deployments may run."""
    whole = accepted(application.model_dump(exclude_unset=True))
    options = _options(whole, application.deployments)
    asked: dict[ray.ObjectRef[list[str]], Node] = {}
    for name, own in options.items():
        if not any(node.takes(own) for node in nodes):
            found.unknown.append(f"{whole.name}.{name}: no node that is there now takes {own}")
    for node in nodes:
        here: dict[str, set[str]] = {}  # deployments, by the environment that they share
        for name, own in options.items():
            if node.takes(own):
                environment = _environment(application.runtime_env, own.get("runtime_env"))
                here.setdefault(json.dumps(environment), set()).add(name)
        for shared, names in here.items():
            look = _look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
                runtime_env=json.loads(shared),
            )
            asked[look.remote(whole.of(names), FRONT in names)] = node
    done, silent = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE_S)
    wrong: dict[str, set[str]] = {}
    unknown: dict[str, set[str]] = {}
    for reference in done:
        where = asked[reference].address
        try:
            for line in ray.get(reference):
                wrong.setdefault(line, set()).add(where)
        except (RuntimeEnvSetupError, RayTaskError) as error:  # nor would a replica start there
            line = f"{whole.name}: it cannot be looked at there: {one_line(error)}"
            wrong.setdefault(line, set()).add(where)
        except RayError as error:
            line = f"{whole.name}: not looked at: {one_line(error)}"
            unknown.setdefault(line, set()).add(where)
    for reference in silent:
        ray.cancel(reference, force=True)
        line = f"{whole.name}: no answer within {PATIENCE_S:g} s"
        unknown.setdefault(line, set()).add(asked[reference].address)
    for lines, of in ((wrong, found.wrong), (unknown, found.unknown)):
        for line, at in lines.items():
            of.append(f"{line} (node{'s'[: len(at) > 1]} {', '.join(sorted(at))})")


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
    """The `ray_actor_options` of each deployment of ours: the file's in place of the graph's. Serve
    gives one whose options say nothing of CPUs one of them."""
    given = {
        each.name: {"num_cpus": 1, **each.ray_actor_options.model_dump(exclude_unset=True)}
        for each in deployments
        if "ray_actor_options" in each.model_fields_set and each.ray_actor_options is not None
    }
    if application.model is not None:
        return {DIFFUSION.name: given.get(DIFFUSION.name, DIFFUSION.ray_actor_options or {})}
    if application.service is None:
        return {}
    own = {
        deployment.name: deployment.ray_actor_options or {}
        for deployment in build_app(build(application.service), name=application.name).deployments
    }
    return own | {name: options for name, options in given.items() if name in own}


def _environment(
    application: Mapping[str, Any], deployment: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A deployment's own `runtime_env` over its application's, as Serve lays it."""
    own = deployment or {}
    variables = {**application.get("env_vars", {}), **own.get("env_vars", {})}
    return {**application, **own, **({"env_vars": variables} if variables else {})}


def _matches(label: str | None, selector: str) -> bool:
    """Whether a node's label is as Ray's selectors ask: `a`, `!a`, `in(a,b)`, `!in(a,b)`."""
    wanted = selector.removeprefix("!")
    several = _IN.fullmatch(wanted)
    values = {value.strip() for value in several[1].split(",")} if several else {wanted}
    return (label in values) != selector.startswith("!")
