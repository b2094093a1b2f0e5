"""A program: two models of the guide on a node with three (logical) GPUs, which they share.

    python -m tests.graphs.shared_gpus FOLDER

One is asked for more than three GPUs can do, then the other beside it, then only the other, then
none. Prints as JSON how many replicas Serve wanted of each and how many ran, twice a second, and
every request with its ending.
"""

import asyncio
import json
import sys
from collections import Counter
from typing import Any

from tests.graphs.four_nodes import Asking, until, up
from tests.graphs.guide import guide
from tests.graphs.nodes import Node, Nodes, deploy, replicas, running, wanted

NODES = (Node("head", "cpu", cpus=32), Node("other", "gpu", cpus=16, gpus=3))
GPUS, FIRST, SECOND = 3, "sd21", "sd15"
FLOORS = {FIRST: 1, SECOND: 0}
CALLERS, STEPS, ANSWERS = 6, 50, 12


def config() -> dict[str, Any]:
    """The guide's with these two, and times that suit a test."""
    whole = guide(FLOORS)
    _, *models = whole["applications"]
    for model in models:
        (diffusion,) = model["deployments"]
        diffusion["autoscaling_config"] = {
            "min_replicas": FLOORS[model["args"]["name"]],
            "max_replicas": GPUS,
            "upscale_delay_s": 1,
            "downscale_delay_s": 3,
            "metrics_interval_s": 1,
            "look_back_period_s": 2,
            "policy": {
                "policy_function": "deployments.diffusion.autoscaling:SharedGpus",
                "policy_kwargs": {"pool": "all", "gpus": GPUS, "target_s": 1},
            },
        }
    return whole


async def observe(nodes: Nodes) -> Any:
    """The scenes, one after the other."""
    asking = Asking(nodes)
    seen: dict[str, Any] = {"samples": []}
    looking = asyncio.create_task(look(seen["samples"]))
    async with asyncio.TaskGroup() as crowds:
        first_done, second_done = asyncio.Event(), asyncio.Event()
        crowds.create_task(ask(asking, FIRST, first_done))
        await until(lambda: len(up(f"model-{FIRST}")) == GPUS)
        crowds.create_task(ask(asking, SECOND, second_done))
        await until(lambda: of(asking, SECOND) >= ANSWERS)
        seen["both"] = counted()
        first_done.set()
        await until(lambda: len(up(f"model-{SECOND}")) == GPUS - FLOORS[FIRST])
        second_done.set()
    await until(lambda: counted() == {model: n for model, n in FLOORS.items() if n})
    looking.cancel()
    await asking.asker.close()
    return seen | {"requests": asking.entries()}


async def ask(asking: Asking, model: str, done: asyncio.Event) -> None:
    """Asks for pictures of a model until that is enough."""
    async with asking.crowd(model, CALLERS, STEPS):
        await done.wait()


def of(asking: Asking, model: str) -> int:
    """How many requests of a model have been answered."""
    return sum(entry.kind.endswith(f" {model}") for entry in asking.ledger.of("answered"))


def counted() -> dict[str, int]:
    """How many replicas of each model run, if any."""
    return dict(
        Counter(
            replica["application"].removeprefix("model-")
            for replica in replicas()
            if replica["deployment"] == "Diffusion" and replica["state"] == "RUNNING"
        )
    )


async def look(samples: list[Any]) -> None:
    """What Serve wants of each model, and what runs."""
    while True:
        targets, run = await asyncio.to_thread(lambda: (wanted(), counted()))
        samples.append(
            {"wanted": {model: targets[f"model-{model}", "Diffusion"] for model in FLOORS}}
            | {"run": run}
        )
        await asyncio.sleep(0.5)


def main(folder: str) -> None:
    with running(folder, NODES) as nodes:
        deploy(config())
        print(json.dumps(asyncio.run(observe(nodes))))


if __name__ == "__main__":
    main(*sys.argv[1:])
