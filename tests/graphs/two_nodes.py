"""A program: the production config on two Ray nodes of this machine, one with (logical) GPUs.

    python -m tests.graphs.two_nodes FOLDER

Keeps to `FOLDER` and to free ports, so that it can run beside any other cluster. Deploys the
service with one model, adds another while the first is asked for images, and prints what it saw
as JSON: where every replica is, which GPUs it may use, and what became of the requests.
"""

import base64
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import yaml

from demo.standins import MODELS
from tests.graphs.guide import guide
from tests.graphs.nodes import LABEL, ROOT, Node, Nodes, deploy, replicas, running, with_gpus

FIRST, ADDED = "sd15", "sd21"
DEADLINE_S = 240


def main(folder: str) -> None:
    nodes = (Node("head", "cpu", cpus=16), Node("other", "gpu", cpus=16, gpus=2))
    with running(folder, nodes) as cluster:
        seen = observe(cluster)
        print(json.dumps(seen | {"checked": checked(Path(folder), cluster.cluster.address)}))


def observe(cluster: Nodes) -> dict[str, Any]:
    url = cluster.url
    deploy(config([FIRST]))
    before = with_gpus(replicas())
    answers: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.2):
            answers.append(image(url, FIRST))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        deploy(config([FIRST, ADDED]))
    finally:
        done.set()
        asking.join()
    return {
        "nodes": {node: labels[LABEL] for node, labels in cluster.alive().items()},
        "before": before,
        "after": with_gpus(replicas()),
        "answers": answers,
        "added": image(url, ADDED),
    }


def config(models: list[str]) -> dict[str, Any]:
    """The guide's with these models, and without what they do not need here: it is to be quick."""
    whole = guide(models)
    service, *chosen = whole["applications"]
    service["args"] |= {"depth": None, "image_encoders": {}}
    service["deployments"] = [
        deployment
        for deployment in service["deployments"]
        if not deployment["name"].startswith(("Depth", "ImageEncoder"))
    ]
    for application in chosen:
        args = application["args"]
        canny = MODELS / "controlnet" / args["family"] / "canny"
        args |= {"controls": {"canny": str(canny)}, "ip_adapter": None}
    return whole


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


if __name__ == "__main__":
    main(sys.argv[1])
