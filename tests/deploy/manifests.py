"""The manifests of a cluster as `kubectl apply -k` would send them, and what is wrong with them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.validators import Draft202012Validator
from referencing import Registry, Resource

from demo.service import ROOT

Manifest = dict[str, Any]
KUBERNETES = ROOT / "deploy" / "kubernetes"
CLUSTERS = ("one-gpu", "eight-gpus", "mixed")
VERSION = (
    "v1.37.0-local-strict"  # further keys are refused, as `kubectl apply --validate=strict` does
)
OWN = {  # which Kubernetes does not know
    "RayService": "rayservice",
    "PodMonitor": "podmonitor",
    "PrometheusRule": "prometheusrule",
}
SCHEMAS = Path(__file__).with_name("schemas")

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")


@cache
def build(cluster: str) -> tuple[Manifest, ...]:
    """What kustomize makes of a cluster's folder."""
    command = ["kubectl", "kustomize", str(KUBERNETES / cluster)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return tuple(yaml.safe_load_all(ran.stdout))


def one(cluster: str, kind: str, name: str = "tcd") -> Manifest:
    """The manifest of that kind and name."""
    (found,) = (
        each for each in build(cluster) if (each["kind"], each["metadata"]["name"]) == (kind, name)
    )
    return found


def ray_cluster(cluster: str) -> Manifest:
    """`rayClusterConfig` of its RayService."""
    config: Manifest = one(cluster, "RayService")["spec"]["rayClusterConfig"]
    return config


def pods(cluster: str) -> dict[str, Manifest]:
    """The pod templates of Ray's nodes, by group."""
    config = ray_cluster(cluster)
    groups = {group["groupName"]: group["template"] for group in config["workerGroupSpecs"]}
    return {"head": config["headGroupSpec"]["template"], **groups}


def problems(manifest: Manifest) -> Iterator[str]:
    """A line for each thing that its schema refuses, with its place."""
    for error in _validator(manifest["kind"], manifest["apiVersion"]).iter_errors(manifest):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message}"


@cache
def _validator(kind: str, version: str) -> Draft202012Validator:
    definitions = _kubernetes("_definitions")
    registry = Registry().with_resource(definitions["$id"], Resource.from_contents(definitions))
    if kind in OWN:
        schema = yaml.safe_load((SCHEMAS / f"{OWN[kind]}.yaml").read_text())
    else:
        group, _, number = version.rpartition("/")
        of_group = f"{group.partition('.')[0]}-{number}" if group else number
        schema = _kubernetes(f"{kind.lower()}-{of_group}")
    return Draft202012Validator(schema, registry=registry)


def _kubernetes(name: str) -> Manifest:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / VERSION
    schema: Manifest = json.loads((folder / f"{name}.json").read_text())
    return schema
