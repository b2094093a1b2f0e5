"""`make survive`: jobs of both kinds while every process of the service is killed in turn.

    python -m tests.survival --jobs 1000 --storage folder

Ends with 1 unless every job was completed once, with the results that it has without faults.
"""

import argparse
import base64
import io
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
from PIL import Image, ImageSequence

from demo.service import OUT, Config, demo_config, free_port, running
from tests.object_store import CREDENTIALS
from tests.soak.processes import wait_until
from tests.survival.processes import has_kind, kill_kind, kill_tree

BUCKET = "jobs"
CLIENTS = 16
EVERY = 10  # so manieth job is a video
PAUSE_S = (3.0, 8.0)  # from when all are there again to the next death
WHOLE_S = 90.0
KINDS = ("tcd:JobWorker", "tcd:Ingress", "model-sd15:Diffusion", "tcd:MapStore")
PATIENCE_S = 1800.0
LEVELS = 2
COPIES = 50
PICTURE = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)


@dataclass
class Service:
    """The service, which is there most of the time. `url`: where; another after each start."""

    config: Config
    url: str = ""
    pid: int = 0
    deaths: Counter[str] = field(default_factory=Counter)
    up: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def runs(self) -> Iterator[None]:
        """Until the block ends, or somebody kills it."""
        with running(self.config, "survival", tell=lambda _: None) as started:
            self.url, self.pid = started.url, started.process.pid
            self.up.set()
            try:
                yield
            finally:
                self.up.clear()

    def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        """Asked again, as a client does, until it is answered by the service itself."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            self.up.wait(PATIENCE_S)
            try:
                answer = httpx.request(method, self.url + path, timeout=120, **how)
            except httpx.HTTPError:
                time.sleep(0.5)
                continue
            retry = answer.status_code in (429, 500, 502, 503)
            if not retry:
                return answer
            time.sleep(0.5)
        raise TimeoutError(path)


@contextmanager
def object_store() -> Iterator[str]:
    """moto's S3 in a process of its own, as clients and service are; its endpoint."""
    port = free_port()
    command = (sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port))
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(endpoint), 60.0)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def answers(url: str) -> bool:
    """Whether somebody listens there."""
    try:
        httpx.get(url)
    except httpx.TransportError:
        return False
    return True


def asked(number: int) -> tuple[str, dict[str, Any]]:
    """The path and body of one of the jobs."""
    body: dict[str, Any] = {
        "model": "sd15",
        "prompt": f"a big red ball on the left, number {number}",
        "size": "64x64",
        "num_inference_steps": 4,
        "seed": number,
        "metadata": False,
        "timeout_s": 600,
    }
    if number % EVERY == 0:
        return "/v1/videos", body | {"num_frames": 4, "output_format": "webp"}
    if number % EVERY == 1:
        file = io.BytesIO()
        Image.fromarray(PICTURE).save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        body["controls"] = [{"type": "canny", "image": url}]
    return "/v1/images/generations", body


def submitted(service: Service, number: int, key: str = "job") -> str:
    """The id of a job, which is asked for again until that is heard."""
    path, body = asked(number)
    if path != "/v1/videos":
        body["async"] = True
    answer = service.ask("POST", path, json=body, headers={"idempotency-key": f"{key}-{number}"})
    assert answer.status_code in (200, 202), answer.text
    return str(answer.json()["id"])


def ended(service: Service, job_id: str) -> dict[str, Any]:
    """A job's card, when it has ended."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        answer = service.ask("GET", f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, (job_id, answer.text)
        card: dict[str, Any] = answer.json()
        if card["status"] not in ("queued", "in_progress"):
            return card
        time.sleep(1.0)
    raise TimeoutError(job_id)


def frames(data: bytes) -> np.ndarray:
    """The pixels of a picture or of a video."""
    image = Image.open(io.BytesIO(data))
    return np.stack(
        [np.asarray(f.convert("RGB")).astype(np.int16) for f in ImageSequence.Iterator(image)]
    )


def lived(service: Service, jobs: int, wholes: int, draw: random.Random) -> dict[int, Any]:
    """Jobs by number, handed in and followed while processes die; the cards of their ends."""
    cards: dict[int, Any] = {}
    over = threading.Event()

    def every() -> None:
        try:
            with ThreadPoolExecutor(CLIENTS) as clients:
                ids = list(clients.map(lambda n: submitted(service, n), range(jobs)))
                for number, card in enumerate(clients.map(lambda i: ended(service, i), ids)):
                    cards[number] = card
        finally:
            over.set()

    living = threading.Thread(target=every)
    with ExitStack() as stack:
        stack.enter_context(service.runs())
        living.start()
        kinds = itertools.cycle(KINDS)
        restarts = 0
        while not over.wait(draw.uniform(*PAUSE_S)):
            done = len(cards)
            if restarts < wholes and sum(service.deaths.values()) >= (restarts + 1) * len(KINDS):
                restarts += 1
                kill_tree(service.pid)
                stack.close()
                service.deaths["the whole service"] += 1
                print(f"{done} seen to end; the whole service was killed", flush=True)
                stack.enter_context(service.runs())
                continue
            kind = next(kinds)
            if kill_kind(service.pid, kind):
                service.deaths[kind] += 1
                print(f"{done} seen to end; {kind} was killed", flush=True)
                wait_until(partial(has_kind, service.pid, kind), WHOLE_S)
                service.ask("GET", "/readyz?models=sd15")
        living.join()
    return cards


def judged(service: Service, cards: dict[int, Any], jobs: int) -> list[str]:
    """What is wrong."""
    wrong: list[str] = []
    ends = Counter(card["status"] for card in cards.values())
    if ends != {"completed": jobs}:
        wrong.append(f"jobs ended: {dict(ends)}")
        wrong.extend(str(c["error"]) for c in cards.values() if c["status"] == "failed")
    listed: list[str] = []
    after = ""
    while True:
        page = service.ask("GET", f"/v1/jobs?limit=100{after}").json()
        listed.extend(job["id"] for job in page["data"])
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    if sorted(listed) != sorted(card["id"] for card in cards.values()):
        wrong.append(f"{len(listed)} jobs are listed, {len(set(listed))} of them distinct")

    def compared(number: int) -> str | None:
        card = cards[number]
        if card["status"] != "completed":
            return None
        now = service.ask("GET", f"/v1/jobs/{card['id']}").json()
        if _without_port(now) != _without_port(card):
            return f"job {number} was answered twice: {card} then {now}"
        file = service.ask("GET", f"/v1/jobs/{card['id']}/content").content
        again = ended(service, submitted(service, number, "again"))
        if again["status"] != "completed":
            return f"job {number}, asked again, is {again['status']}: {again['error']}"
        other = service.ask("GET", f"/v1/jobs/{again['id']}/content").content
        apart = int(np.abs(frames(file) - frames(other)).max())
        return None if apart <= LEVELS else f"job {number} is {apart} levels from what it should be"

    with ThreadPoolExecutor(CLIENTS) as clients:
        wrong.extend(said for said in clients.map(compared, range(jobs)) if said)
    return wrong


def _without_port(card: Any) -> str:
    """The service has another after each start."""
    return re.sub(r"127\.0\.0\.1:\d+", "", json.dumps(card))


def copies(service: Service) -> list[str]:
    """Many copies of one request, while the ingress is killed."""
    body = {**asked(5)[1], "num_inference_steps": 50, "size": "256x256", "timeout_s": 200}
    keyed = {"idempotency-key": "copies"}

    def images() -> float:
        text = service.ask("GET", "/metrics").text
        lines = [line for line in text.splitlines() if line.startswith("tcd_engine_images_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    before = images()

    def ask(_: int) -> bytes:
        answer = service.ask("POST", "/v1/images/generations", json=body, headers=keyed)
        assert answer.status_code == 200, answer.text
        return answer.content

    with ThreadPoolExecutor(COPIES) as clients:
        answers = [clients.submit(ask, n) for n in range(COPIES)]
        time.sleep(1.5)
        killed = kill_kind(service.pid, "tcd:Ingress")
        distinct = {each.result() for each in answers}
    wrong = [] if killed else ["no ingress was killed"]
    if len(distinct) != 1:
        wrong.append(f"{COPIES} copies got {len(distinct)} answers")
    if (made := images() - before) != 1:
        wrong.append(f"{COPIES} copies made {made:g} images")
    other = service.ask("POST", "/v1/images/generations", json=body | {"seed": 6}, headers=keyed)
    if other.status_code != 409:
        wrong.append(f"another request with the same key got {other.status_code}")
    return wrong


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.survival")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--storage", choices=("folder", "s3"), default="folder")
    parser.add_argument("--wholes", type=int, default=2, help="deaths of the whole service")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="survival", dir="/tmp") as folder, ExitStack() as stack:
        storage: dict[str, Any] = {"kind": "folder", "path": str(Path(folder) / "jobs")}
        if args.storage == "s3":
            endpoint = stack.enter_context(object_store())
            os.environ |= CREDENTIALS
            boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
            storage = {"kind": "s3", "bucket": BUCKET, "endpoint_url": endpoint}
        service = Service(_config(storage))
        began = time.monotonic()
        cards = lived(service, args.jobs, args.wholes, random.Random(args.seed))
        lasted_s = time.monotonic() - began
        with service.runs():
            wrong = judged(service, cards, args.jobs) + copies(service)
    told = {
        "jobs": args.jobs,
        "storage": args.storage,
        "seconds": round(lasted_s),
        "deaths": dict(service.deaths),
        "wrong": wrong,
    }
    OUT.mkdir(exist_ok=True)
    (OUT / f"survival-{args.storage}.json").write_text(json.dumps(told, indent=2))
    print(json.dumps(told, indent=2))
    sys.exit(1 if wrong else 0)


def _config(storage: dict[str, Any]) -> Config:
    """The demo's service with one model, whose jobs have this storage and short leases."""
    config = demo_config(("sd15",))
    applications = config["applications"]
    assert isinstance(applications, list)
    service = next(one for one in applications if one["name"] == "tcd")
    service["args"] |= {
        "jobs": {"storage": storage, "lease_s": 5.0, "max_images": 5000, "keep_s": 86400.0},
        "max_videos": 1000,
        "video_ttl_s": 86400.0,
    }
    service["deployments"] = [d for d in service["deployments"] if d["name"] != "JobStore"]
    return config


if __name__ == "__main__":
    main()
