"""A program: the guide's config on four Ray nodes of this machine, two of them with (logical) GPUs.

    python -m tests.graphs.four_nodes FOLDER LAYOUT SCENE...

Deploys every model of the guide, one of them awake and the others at zero, plays the scenes one
after the other, and prints what it saw as JSON: what Ray says of nodes and actors, and every
request with its ending.
"""

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import httpx
import ray
from PIL import Image

from tests.graphs.guide import guide
from tests.graphs.nodes import (
    NAME,
    ROOT,
    Node,
    Nodes,
    deploy,
    replicas,
    running,
    wanted,
    with_gpus,
)
from tests.soak.asking import Ask, Asker
from tests.soak.judging import Answer, Judge, Pictures, Probes
from tests.soak.ledger import Ledger

# A CPU node holds all that the other one does, if that is lost.
CPUS, GPUS = (
    tuple(Node(f"{kind}-{n}", kind, cpus, gpus) for n in (1, 2))
    for kind, cpus, gpus in (("cpu", 32, 0), ("gpu", 8, 2))
)
# The head has the only proxy, which asks an ingress of its own node if there is one: for ingresses
# elsewhere to have requests, it is a node without replicas.
LAYOUTS = {"two-and-two": (*CPUS, *GPUS), "bare-head": (Node("head", "head", 1), *CPUS, GPUS[0])}
AWAKE, GROWING, ASLEEP = "sd15", "sd21", ("sdxl", "sdxl-inpainting", "animagine", "toonyou")
INPAINTING = "sdxl-inpainting"
MOST = 3
PATIENCE_S = 240.0
SEEDS, STEPS, CALLERS, JOBS = 4, 8, 6, 4
UNDER_WAY = ("queued", "in_progress")
SIDES = {  # the least that the guide allows
    model["args"]["name"]: model["deployments"][0]["user_config"]["limits"]["min_side"]
    for model in guide()["applications"][1:]
}
KEY = {"authorization": "Bearer key"}
DEMO = (ROOT / "docs" / "images" / "demo.png").read_bytes()
PICTURE = f"data:image/png;base64,{base64.b64encode(DEMO).decode()}"


def config(folder: str) -> dict[str, Any]:
    """The guide's, with times that suit a test, a model that is never without a replica, and jobs
    in a folder that all nodes share, as a service on several nodes should have them."""
    whole = guide()
    service, *models = whole["applications"]
    service["args"]["jobs"] = {"storage": {"kind": "folder", "path": f"{folder}/jobs"}}
    service["deployments"] = [d for d in service["deployments"] if d["name"] != "JobStore"]
    for model in models:
        (diffusion,) = model["deployments"]
        scaling = diffusion["autoscaling_config"]
        diffusion["autoscaling_config"] = {
            **scaling,
            "min_replicas": int(model["args"]["name"] == AWAKE),
            "max_replicas": MOST if model["args"]["name"] != AWAKE else 1,
            "upscale_delay_s": 1,
            "downscale_delay_s": 5,
            "metrics_interval_s": 1,
            "look_back_period_s": 2,
            "policy": {**scaling["policy"], "policy_kwargs": {"target_s": 1}},
        }
    return whole


class Asking:
    """Requests to the service, each entered in a ledger with its ending."""

    def __init__(self, nodes: Nodes) -> None:
        self.ledger = Ledger()
        self.asker = Asker(nodes.url, self.ledger, PATIENCE_S)
        self.probes = Probes()
        self._url = nodes.url

    def image(self, model: str, turn: int, steps: int = STEPS) -> Ask:
        """One of the kinds of requests for a picture, in turns: from text, along a map that is
        made on a CPU node, and as events."""
        seed = turn % SEEDS
        body: dict[str, Any] = {
            "model": model,
            "prompt": "a red ball",
            "size": size(model),
            "num_inference_steps": steps,
            "seed": seed,
        }
        kind = ("text", "control", "stream")[turn % 3] if model == AWAKE else "text"
        if kind == "control":
            body["controls"] = [{"type": "canny", "image": PICTURE}]
        body["stream"] = kind == "stream"
        pictures = self.pictures(kind, model, seed)
        judge = pictures.stream if kind == "stream" else pictures.body
        return self._ask(f"{kind} {model}", body, judge)

    def inpainting(self) -> Ask:
        """Of the model that does nothing else: the left half of a red picture."""
        side = SIDES[INPAINTING]
        picture = Image.new("RGBA", (side, side), "red")
        mask = picture.copy()
        mask.paste((0, 0, 0, 0), (0, 0, side // 2, side))
        fields = {
            "model": INPAINTING,
            "prompt": "a red ball",
            "size": size(INPAINTING),
            "num_inference_steps": str(STEPS),
            "seed": "0",
        }
        files = {"image": ("image.png", png(picture)), "mask": ("mask.png", png(mask))}
        url = f"{self._url}/v1/images/edits"
        request = httpx.Request("POST", url, data=fields, files=files, headers=KEY)
        request.read()
        return Ask("inpainting", request, self.pictures("inpainting", INPAINTING, 0).body)

    def pictures(self, kind: str, model: str, seed: int) -> Pictures:
        """What such a request must be answered with: the same as before."""
        sides = (SIDES[model], SIDES[model])
        return Pictures(self.probes, f"{kind} {model}", 1, sides, "png", seed)

    def _ask(self, kind: str, body: dict[str, Any], judge: Judge) -> Ask:
        url = f"{self._url}/v1/images/generations"
        return Ask(kind, httpx.Request("POST", url, json=body, headers=KEY), judge)

    @asynccontextmanager
    async def crowd(self, model: str, callers: int, steps: int = STEPS) -> AsyncIterator[None]:
        """Callers that ask one request after the other as long as the block lasts; all have ended
        with it."""
        done = asyncio.Event()

        async def call(number: int) -> None:
            turn = number
            while not done.is_set():
                await self.asker.ask(self.image(model, turn, steps))
                turn += callers

        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                group.create_task(call(number))
            try:
                yield
            finally:
                done.set()

    def answered(self) -> int:
        """How many requests have been."""
        return len(self.ledger.of("answered"))

    def entries(self) -> list[dict[str, Any]]:
        """The ledger, for the end."""
        return [asdict(entry) for entry in self.ledger.entries]


def size(model: str) -> str:
    """As requests say it."""
    return f"{SIDES[model]}x{SIDES[model]}"


def png(picture: Image.Image) -> bytes:
    """The file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


async def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Looks twice a second."""
    async with asyncio.timeout(timeout_s):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.5)


def alive(application: str) -> list[str]:
    """The nodes of an application's replicas that live, as Ray says."""
    return [
        actor["Address"]["NodeID"] for actor in actors(application) if actor["State"] == "ALIVE"
    ]


def actors(application: str) -> list[dict[str, Any]]:
    """All replicas that an application ever had: Ray forgets none that has died."""
    table = ray._private.state.actors().values()
    return [actor for actor in table if actor["Name"].startswith(f"SERVE_REPLICA::{application}#")]


def up(application: str) -> list[str]:
    """The nodes of an application's replicas that serve, as Serve says."""
    return [
        replica["node"]
        for replica in replicas()
        if replica["application"] == application and replica["state"] == "RUNNING"
    ]


async def placed(nodes: Nodes) -> Any:
    """Where everything is."""
    return await asyncio.to_thread(lambda: with_gpus(replicas()))


async def grown(nodes: Nodes) -> Any:
    """A model from none to as many as it may have and back, while the others are looked at in
    every way that there is."""
    application = f"model-{GROWING}"
    asking = Asking(nodes)
    seen: dict[str, Any] = {"before": alive(application), "looks": []}
    looking = asyncio.create_task(look(nodes, seen["looks"]))
    async with asking.crowd(GROWING, 2 * MOST, steps=50):
        await until(lambda: len(up(application)) == MOST)
        answered = asking.answered()
        await until(lambda: asking.answered() >= answered + 2 * MOST)
        seen["most"] = alive(application)
    await until(lambda: not alive(application))
    seen["left"] = alive(application)
    looking.cancel()
    await asking.asker.close()
    return seen | {"requests": asking.entries()}


async def look(nodes: Nodes, looks: list[tuple[str, int]]) -> None:
    """Asks for what may be known of models, and for none of them."""
    sleeper = ASLEEP[0]
    paths = (
        *("v1/models", f"v1/models/{sleeper}", "readyz", f"readyz?models={','.join(ASLEEP)}"),
        *("metrics", "healthz", "v1/usage", "v1/jobs", "sdapi/v1/sd-models", "docs", ""),
    )
    async with httpx.AsyncClient(base_url=nodes.url, headers=KEY, timeout=60) as client:
        while True:
            for path in paths:
                looks.append((path, (await client.get(f"/{path}")).status_code))
            tokens = await client.post("/v1/tokenize", json={"model": sleeper, "prompt": "a ball"})
            looks.append(("v1/tokenize", tokens.status_code))
            looks.append(("tcd models", await asyncio.to_thread(tcd_models, nodes.url)))
            await asyncio.sleep(1)


def tcd_models(url: str) -> int:
    """The status with which the command ends."""
    command = [sys.executable, "-m", "tcd", "models", "--url", url]
    variables = {**os.environ, "TCD_API_KEY": "key"}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True).returncode


async def woken(nodes: Nodes) -> Any:
    """All models of the guide at once, of which there are more than GPUs."""
    asking = Asking(nodes)
    asked = [asking.image(m, 0) for m in (GROWING, *ASLEEP) if m != INPAINTING]
    await asyncio.gather(*(asking.asker.ask(one) for one in (*asked, asking.inpainting())))
    await asking.asker.close()
    places = {m: [a["Address"]["NodeID"] for a in actors(f"model-{m}")] for m in ASLEEP}
    return {"places": places, "requests": asking.entries()}


async def gpu_lost(nodes: Nodes) -> Any:
    """The node of a model's only replica is lost while that is asked for pictures."""
    (node,) = alive(f"model-{AWAKE}")
    return await lost(nodes, node)


async def cpu_lost(nodes: Nodes) -> Any:
    """A node of ingresses, preprocessors and whatever else there is beside them is lost."""
    (node,) = (node for node, labels in nodes.alive().items() if labels[NAME] == "cpu-2")
    return await lost(nodes, node)


def whole_without(node: str) -> bool:
    """Whether the service and the model that is awake run as Serve wants them, elsewhere."""
    run = Counter(
        (replica["application"], replica["deployment"])
        for replica in replicas()
        if replica["state"] == "RUNNING" and replica["node"] != node
    )
    parts = {part: n for part, n in wanted().items() if part[0] in ("tcd", f"model-{AWAKE}")}
    return all(run[part] >= n for part, n in parts.items())


async def lost(nodes: Nodes, node: str) -> Any:
    """A node is lost under load, which goes on until the service is whole again, and a while."""
    asking = Asking(nodes)
    ledger = asking.ledger
    for turn in range(3 * SEEDS):  # how each picture should be
        await asking.asker.ask(asking.image(AWAKE, turn))
    held = [replica for replica in replicas() if replica["node"] == node]
    jobs = Jobs(nodes, asking)
    async with asking.crowd(AWAKE, CALLERS):
        for number in range(JOBS):
            await jobs.hand_in(number)
        answered = asking.answered()
        await until(lambda: asking.answered() >= answered + CALLERS)
        lost_at = ledger.now()
        await asyncio.to_thread(nodes.lose, node)
        noticed_at = ledger.now()
        for number in range(JOBS, 2 * JOBS):
            await jobs.hand_in(number)
        await until(lambda: whole_without(node))
        whole_at = ledger.now()
        answered = asking.answered()
        await until(lambda: asking.answered() >= answered + 3 * SEEDS)
    await asking.asker.close()
    return {
        "held": held,
        "lost_at": lost_at,
        "noticed_at": noticed_at,
        "whole_at": whole_at,
        "requests": asking.entries(),
        "jobs": await jobs.ended(),
    }


class Jobs:
    """Jobs, each handed in until it is accepted."""

    def __init__(self, nodes: Nodes, asking: Asking) -> None:
        self._asking = asking
        self._client = httpx.AsyncClient(base_url=nodes.url, headers=KEY, timeout=PATIENCE_S)
        self._accepted: dict[str, int] = {}  # the seeds, by id
        self._refused: list[int | str] = []

    async def hand_in(self, number: int) -> None:
        """With a key, so that whoever is not sure may ask again."""
        body = {
            "model": AWAKE,
            "prompt": "a red ball",
            "size": size(AWAKE),
            "num_inference_steps": STEPS,
            "seed": number % SEEDS,
            "async": True,
            "response_format": "b64_json",
        }
        key = {"idempotency-key": f"job {number}"}
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    route = "/v1/images/generations"
                    answer = await self._client.post(route, json=body, headers=key)
                except httpx.HTTPError as error:
                    self._refused.append(repr(error))
                else:
                    if answer.status_code == 202:
                        self._accepted[answer.json()["id"]] = number % SEEDS
                        return
                    self._refused.append(answer.status_code)
                await asyncio.sleep(0.5)

    async def ended(self) -> dict[str, Any]:
        """How those that were accepted ended, and the ids of all that there are."""
        wrong = {}
        async with asyncio.timeout(PATIENCE_S):
            for job_id, seed in self._accepted.items():
                while (card := await self._read(f"/v1/jobs/{job_id}"))["status"] in UNDER_WAY:
                    await asyncio.sleep(0.5)
                answer = Answer(200, {}, json.dumps(card["result"]).encode())
                wrong[job_id] = (
                    self._asking.pictures("text", AWAKE, seed).body(answer)
                    if card["status"] == "completed"
                    else card["status"]
                )
            listed = [card["id"] for card in (await self._read("/v1/jobs?limit=100"))["data"]]
        await self._client.aclose()
        return {"wrong": wrong, "listed": listed, "refused": self._refused}

    async def _read(self, path: str) -> dict[str, Any]:
        """What is there; asked again while that is 503."""
        while (answer := await self._client.get(path)).status_code == 503:
            await asyncio.sleep(0.5)
        read: dict[str, Any] = answer.raise_for_status().json()
        return read


SCENES: dict[str, Callable[[Nodes], Awaitable[Any]]] = {
    "placed": placed,
    "grown": grown,
    "woken": woken,
    "gpu-lost": gpu_lost,
    "cpu-lost": cpu_lost,
}


async def play(nodes: Nodes, scenes: list[str]) -> dict[str, Any]:
    seen: dict[str, Any] = {"nodes": nodes.alive()}
    for scene in scenes:
        seen[scene] = await SCENES[scene](nodes)
        print(f"seen: {scene}", file=sys.stderr, flush=True)
    models = (AWAKE, GROWING, *ASLEEP)
    return seen | {"ever": {model: len(actors(f"model-{model}")) for model in models}}


def main(folder: str, layout: str, *scenes: str) -> None:
    with running(folder, LAYOUTS[layout]) as nodes:
        deploy(config(folder))
        print(json.dumps(asyncio.run(play(nodes, list(scenes)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
