"""Ray nodes of this machine with Serve, for programs of tests: a process can be connected to one
cluster only, and that of pytest may be by then.

They keep to a folder and to free ports, so that they can run beside any other cluster.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from demo.service import ENVIRONMENT, free_port

ROOT = Path(__file__).resolve().parents[2]
LABEL, NAME = "tcd-node", "tcd-test-name"
STORE = 150 * 2**20
DEPLOY_S = 240
SEEN_S = 60


@dataclass(frozen=True)
class Node:
    """What `ray start` is told. CPUs and GPUs are logical: nobody looks whether they are there."""

    name: str
    label: str
    cpus: int
    gpus: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """As Ray has it."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "labels": {LABEL: self.label, NAME: self.name},
            "object_store_memory": STORE,
        }


@dataclass(frozen=True)
class Nodes:
    """A cluster that runs. `url`: of its only proxy, on the head."""

    cluster: Cluster
    url: str

    def alive(self) -> dict[str, dict[str, str]]:
        """The labels of all nodes that Ray holds for alive, by their ids."""
        return {node["NodeID"]: node["Labels"] for node in ray.nodes() if node["Alive"]}

    def lose(self, node_id: str) -> None:
        """What runs on a node ends at once, as when the machine does; returns when Ray has
        noticed."""
        (node,) = (node for node in self.cluster.worker_nodes if node.node_id == node_id)
        (raylet,) = node.all_processes["raylet"]
        workers = psutil.Process(raylet.process.pid).children(recursive=True)
        self.cluster.remove_node(node, allow_graceful=False)
        for worker in workers:
            try:
                worker.kill()
            except psutil.NoSuchProcess:
                continue
        deadline = time.monotonic() + SEEN_S
        while node_id in self.alive():
            if time.monotonic() > deadline:
                raise RuntimeError(f"Ray did not notice within {SEEN_S} s that a node is gone")
            time.sleep(0.2)


@contextmanager
def running(folder: str, nodes: Sequence[Node]) -> Iterator[Nodes]:
    """A cluster of these nodes, the first of them the head, with Serve on it."""
    os.environ |= {
        **ENVIRONMENT,
        "RAY_TMPDIR": folder,
        "RAY_prestart_worker_first_driver": "0",  # no idle worker for every logical CPU
        "PYTHONPATH": str(ROOT),
        "TCD_API_KEYS": "key",
    }
    head, *others = nodes
    port = free_port()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            **head.options,
            "gcs_server_port": free_port(),
            "include_dashboard": False,
            "dashboard_port": free_port(),
        },
    )
    try:
        for node in others:
            cluster.add_node(**node.options)
        ray.init(address=cluster.address, log_to_driver=False)
        # Nodes that share an address share a port: one proxy for all.
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 330},
            controller_options={
                "runtime_env": {"env_vars": {"RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1"}}
            },
        )
        yield Nodes(cluster, f"http://127.0.0.1:{port}")
    finally:
        ray.shutdown()
        cluster.shutdown()


def deploy(config: dict[str, Any]) -> None:
    """What `serve deploy` does with a config, and waits for it."""
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate(config))
    deadline = time.monotonic() + DEPLOY_S
    while True:
        applications = serve.status().applications
        states = {name: applications[name].status for name in applications}
        if len(states) == len(config["applications"]) and set(states.values()) == {"RUNNING"}:
            return
        if "DEPLOY_FAILED" in states.values() or time.monotonic() > deadline:
            raise RuntimeError(f"{ {name: app.message for name, app in applications.items()} }")
        time.sleep(1)


def replicas() -> list[dict[str, Any]]:
    """Every replica that Serve says is there: what it is, where, and how it stands."""
    return [
        {
            "application": application,
            "deployment": deployment,
            "node": replica.get("node_id"),
            "pid": replica.get("pid"),
            "state": replica["state"],
            "actor": replica["actor_name"],
        }
        for (application, deployment), details in _deployments().items()
        for replica in details["replicas"]
    ]


def wanted() -> dict[tuple[str, str], int]:
    """How many replicas Serve wants of each deployment, by application and name."""
    return {part: details["target_num_replicas"] for part, details in _deployments().items()}


def _deployments() -> dict[tuple[str, str], Any]:
    client = _get_global_client()
    assert client is not None
    return {
        (application["name"], deployment["name"]): deployment
        for application in client.get_serve_details()["applications"].values()
        for deployment in application["deployments"].values()
    }


def with_gpus(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These replicas, each with the GPUs that it may use: it is asked."""
    for replica in found:
        actor = ray.get_actor(replica["actor"], namespace="serve")
        gpus: Any = actor.__ray_call__.remote(lambda _: os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        replica["gpus"] = ray.get(gpus)
    return found


def seen_by(program: str, *words: str, timeout_s: float) -> Any:
    """What a program of this kind saw: the last line that it prints is JSON. Its first word is a
    folder of its own."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        started = subprocess.Popen(
            [sys.executable, "-m", program, folder, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = started.communicate(timeout=timeout_s)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
                started.communicate()
        assert started.returncode == 0, err[-4000:]
        return json.loads(out.splitlines()[-1])
