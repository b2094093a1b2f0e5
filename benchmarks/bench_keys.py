"""Keys that share one replica: a flood of one beside single requests of another, and ten by weight.

    python -m benchmarks.bench_keys [--quick] [--max-step-ms 100]

Over HTTP, on the demo's sd15. Single requests are 64 x 64 pixels in 4 steps, one after another; the
flood is of the largest requests allowed: ten images each, 50 steps, the highest priority.
"""

import argparse
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from benchmarks.report import machine, percentile, print_table
from benchmarks.service import LOGICAL_CPUS, silent
from demo.service import Config, demo_config, running

FLOODS = ("64x64", "128x128", "512x512")
FLOODERS = 24  # requests that a flood keeps under way
CLIENTS = 4  # of each of the ten keys
TEN = {f"key-{weight}": float(weight) for weight in range(1, 11)}


@dataclass(frozen=True)
class Asked:
    """The command line."""

    quick: bool
    max_step_ms: float | None
    sizes: Sequence[str]
    no_weights: bool


@dataclass(frozen=True)
class Times:
    """Times of single requests, in seconds."""

    seconds: Sequence[float]

    def at(self, part: float) -> float:
        """The time that this part of them stays below."""
        return percentile(self.seconds, part)


class Client:
    """Requests with the key of one name."""

    def __init__(self, url: str, secret: str) -> None:
        headers = {"authorization": f"Bearer {secret}"}
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.Client(base_url=url, headers=headers, timeout=300, limits=limits)

    def ask(self, **more: object) -> httpx.Response:
        """One request for images."""
        body = {"model": "sd15", "prompt": "a big red ball, at night", "size": "64x64", **more}
        return self._http.post("/v1/images/generations", json=body)

    def singles(self, seconds: float) -> Times:
        """One image after another for so long, in four steps."""
        times: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            self.ask(seed=len(times), num_inference_steps=4).raise_for_status()
            times.append(time.perf_counter() - started)
        return Times(times)

    @contextmanager
    def flooding(self, clients: int, **more: object) -> Iterator[list[int]]:
        """So many requests at a time until the end of the block; yields the images that came."""
        images: list[int] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                try:
                    answer = self.ask(**more, timeout_s=240)
                except httpx.TransportError:
                    if not over.is_set():  # else the service ends, and this with it
                        raise
                    return
                if answer.status_code == 200:
                    images.append(len(answer.json()["data"]))
                else:
                    over.wait(float(answer.headers.get("retry-after-ms", 100)) / 1000)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield images
        finally:
            over.set()


@contextmanager
def keyed_service(
    weights: dict[str, float], max_step_ms: float | None = None
) -> Iterator[dict[str, Client]]:
    """The service with a key for each name, and a client for each."""
    made = {name: secrets.token_urlsafe(32) for name in weights}
    listed = [
        {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), "weight": weight}
        for (name, weight), secret in zip(weights.items(), made.values(), strict=True)
    ]
    os.environ.update(LOGICAL_CPUS, TCD_BENCH_KEYS=json.dumps(listed))
    with running(_config(max_step_ms), "bench-keys", tell=silent) as service:
        yield {name: Client(service.url, secret) for name, secret in made.items()}


def _config(max_step_ms: float | None) -> Config:
    config = demo_config(["sd15"])
    applications = config["applications"]
    assert isinstance(applications, list)
    for application in applications:
        if application["name"] == "tcd":
            application["args"]["keys"] = {"env": "TCD_BENCH_KEYS"}
        elif max_step_ms is not None:
            user_config = application["deployments"][0]["user_config"]
            user_config.setdefault("limits", {})["max_step_ms"] = max_step_ms
    return config


def beside_a_flood(asked: Asked) -> None:
    """Single requests alone, and beside a flood of each size."""
    seconds = 20 if asked.quick else 60
    print(f"One key's single requests for {seconds:.0f} s, beside {FLOODERS} of another\n")
    header = ["the flood's size", "alone: requests, p50, p95, s", "beside it", "p95 ratio"]
    for size in asked.sizes:
        with keyed_service({"one": 1.0, "flood": 1.0}, asked.max_step_ms) as clients:
            one = clients["one"]
            one.singles(5)
            before = one.singles(seconds)
            more = {"n": 10, "num_inference_steps": 50, "priority": 10, "size": size}
            with clients["flood"].flooding(FLOODERS, **more):
                time.sleep(10)
                beside = one.singles(seconds)
        ratio = f"{beside.at(0.95) / before.at(0.95):.2f}"
        print_table(header, [[size, _shown(before), _shown(beside), ratio]])


def _shown(times: Times) -> str:
    return f"{len(times.seconds)}, {times.at(0.5):.2f}, {times.at(0.95):.2f}"


def by_weight(seconds: float) -> None:
    """Ten keys of weights 1 to 10, all asking for more than there is."""
    with keyed_service(TEN) as clients:
        floods = [client.flooding(CLIENTS, n=4) for client in clients.values()]
        counts = [flood.__enter__() for flood in floods]
        time.sleep(10)
        begun = [sum(count) for count in counts]
        time.sleep(seconds)
        made = [sum(count) - before for count, before in zip(counts, begun, strict=True)]
        for flood in floods:
            flood.__exit__(None, None, None)
    total, weights = sum(made), sum(TEN.values())
    rows = [
        [name, f"{weight:g}", str(images), f"{images / total / (weight / weights):.2f}"]
        for (name, weight), images in zip(TEN.items(), made, strict=True)
    ]
    print(f"Ten keys for {seconds:.0f} s\n")
    print_table(["key", "weight", "images", "of its share"], rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_keys")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--max-step-ms", type=float, help="of UNet calls (the configured one)")
    parser.add_argument("--sizes", nargs="*", default=FLOODS, help="of the flood's pictures")
    parser.add_argument("--no-weights", action="store_true", help="not the ten keys")
    asked = Asked(**vars(parser.parse_args()))
    print(f"## Keys\n\n{machine()}\n")
    beside_a_flood(asked)
    if not asked.no_weights:
        by_weight(60 if asked.quick else 240)


if __name__ == "__main__":
    main()
