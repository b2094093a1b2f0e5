"""A program: the production config on two Ray nodes of this machine, one with (logical) GPUs.

    python -m tests.graphs.two_nodes FOLDER

Keeps to `FOLDER` and to free ports, so that it can run beside any other cluster. Deploys the
service with one model, adds another while the first is asked for images, and prints what it saw
as JSON: where every replica is, which GPUs it may use, and what became of the requests.
"""

import base64
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from demo.service import free_port
from demo.standins import MODELS

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "configs" / "production" / "guide.yaml"
FIRST, ADDED = "sd15", "sd21"
DEADLINE_S = 240


def main(folder: str) -> None:
    port = free_port()
    os.environ |= {
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",  # no idle worker for every logical CPU
        "PYTHONPATH": str(ROOT),
        "TCD_TEST_KEYS": "key",
    }
    store = 150 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 16,
            "labels": {"tcd-node": "cpu"},
            "object_store_memory": store,
            "gcs_server_port": free_port(),
            "include_dashboard": False,
            "dashboard_port": free_port(),
        },
    )
    try:
        cluster.add_node(
            num_cpus=16, num_gpus=2, labels={"tcd-node": "gpu"}, object_store_memory=store
        )
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        seen = observe(f"http://127.0.0.1:{port}")
        print(json.dumps(seen | {"checked": checked(Path(folder), cluster.address)}))
    finally:
        ray.shutdown()
        cluster.shutdown()


def observe(url: str) -> dict[str, Any]:
    deploy([FIRST])
    before = replicas()
    answers: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.2):
            answers.append(image(url, FIRST))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        deploy([FIRST, ADDED])
    finally:
        done.set()
        asking.join()
    return {
        "nodes": {node["NodeID"]: node["Labels"]["tcd-node"] for node in ray.nodes()},
        "before": before,
        "after": replicas(),
        "answers": answers,
        "added": image(url, ADDED),
    }


def deploy(models: list[str]) -> None:
    """What `serve deploy` does with a config, and waits for it."""
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(ServeDeploySchema.model_validate(config(models)))
    deadline = time.monotonic() + DEADLINE_S
    while True:
        applications = serve.status().applications
        states = {name: applications[name].status for name in applications}
        if len(states) == 1 + len(models) and set(states.values()) == {"RUNNING"}:
            return
        if "DEPLOY_FAILED" in states.values() or time.monotonic() > deadline:
            raise RuntimeError(f"{ {name: app.message for name, app in applications.items()} }")
        time.sleep(1)


def config(models: list[str]) -> dict[str, Any]:
    """The guide's config with these models alone: stand-ins for weights, and no other change than
    what keeps this quick and on this machine."""
    whole: dict[str, Any] = yaml.safe_load(GUIDE.read_text())
    service, *others = whole["applications"]
    service["args"] |= {"api_keys_env": "TCD_TEST_KEYS", "depth": None, "image_encoders": {}}
    service["deployments"] = [
        deployment
        for deployment in service["deployments"]
        if not deployment["name"].startswith(("Depth", "ImageEncoder"))
    ]
    chosen = [application for application in others if application["args"]["name"] in models]
    for application in chosen:
        args = application["args"]
        args |= {
            "checkpoint": str(MODELS / args["family"]),
            "tcd_lora": str(MODELS / "tcd-lora" / args["family"]),
            "controls": {"canny": str(MODELS / "controlnet" / args["family"] / "canny")},
            "ip_adapter": None,
            "variant": None,
            "dtype": "float32",
            "device": "cpu",
        }
    return {"applications": [service, *chosen]}


def image(url: str, model: str) -> int:
    """Asks for an image along a canny map: from the CPU node to the GPU node. The status."""
    picture = (ROOT / "docs" / "images" / "demo.png").read_bytes()
    data_url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    body = {
        "model": model,
        "prompt": "a red ball",
        "size": "256x256",
        "num_inference_steps": 1,
        "controls": [{"type": "canny", "image": data_url}],
    }
    key = {"authorization": "Bearer key"}
    route = f"{url}/v1/images/generations"
    return httpx.post(route, json=body, headers=key, timeout=DEADLINE_S).status_code


def checked(folder: Path, address: str) -> list[list[str]]:
    """What `make check-config` says of what runs there, and of what could not: line by line."""
    right, wrong = config([FIRST]), config([FIRST, ADDED])
    for each in (right, wrong):
        each["applications"][0]["args"]["default_model"] = FIRST
    service, first, added = wrong["applications"]
    service["args"]["api_keys_env"] = "TCD_NOT_SET"
    first["args"]["tcd_lora"] = "/nowhere/tcd"
    (diffusion,) = added["deployments"]
    diffusion["ray_actor_options"] = {**diffusion["ray_actor_options"], "accelerator_type": "H100"}
    said: list[list[str]] = []
    for name, each in (("right", right), ("wrong", wrong)):
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(each))
        command = [sys.executable, "-m", "graphs.check", "--offline", "--nodes"]
        run = subprocess.run(
            [*command, "--address", address, path], cwd=ROOT, capture_output=True, text=True
        )
        print(run.stderr, file=sys.stderr)
        said.append([line.removeprefix(f"{path}: ") for line in run.stdout.splitlines()])
    return said


def replicas() -> list[dict[str, Any]]:
    """Every replica that runs: what it is, where it is, and the GPUs that it may use."""
    client = _get_global_client()
    assert client is not None
    details = client.get_serve_details()
    found: list[dict[str, Any]] = []
    for application in details["applications"].values():
        for deployment in application["deployments"].values():
            for replica in deployment["replicas"]:
                actor = ray.get_actor(replica["actor_name"], namespace="serve")
                gpus: Any = actor.__ray_call__.remote(
                    lambda _: os.environ.get("CUDA_VISIBLE_DEVICES", "")
                )
                found.append(
                    {
                        "deployment": deployment["name"],
                        "application": application["name"],
                        "node": replica["node_id"],
                        "pid": replica["pid"],
                        "gpus": ray.get(gpus),
                    }
                )
    return found


if __name__ == "__main__":
    main(sys.argv[1])
