"""One idle request through HTTP against the bare pipeline call. Results in markdown.

    python -m benchmarks.bench_http [--rounds N]

The ways to the same image take turns. The pipeline and the engine run in this process; the
service runs as `make demo` starts it, in processes of its own.
"""

import argparse
import base64
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import httpx
import openai
import torch

from benchmarks.bare import BarePipeline
from benchmarks.models import SIDE, Model, write_model
from benchmarks.pipeline import quiet_libraries
from benchmarks.report import machine, print_table, quartiles, ratios
from benchmarks.service import running_service
from configs.app import ModelUserConfig
from deployments.contracts.jobs import ImageJob
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from deployments.ingress.answer.media import encode

SCALES = (1, 4)
STEPS = 4
WARM_UP = 5
UNKNOWN = "no-such-adapter"

PIPELINE = "diffusers pipeline and PNG encoding"
ENGINE = "engine in this process and PNG encoding"
HTTPX = "HTTP, httpx client"
OPENAI = "HTTP, openai client"
HEALTH = "GET /healthz"
REFUSED = "a generation that the replica refuses"

Times = dict[str, list[float]]  # seconds by way, one number a round


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_http")
    parser.add_argument("--rounds", type=int, default=30)
    rounds: int = parser.parse_args().rounds
    quiet_libraries()
    torch.set_num_threads(1)  # as a replica with one CPU has it
    print(f"{machine()}, one torch thread; {SIDE} x {SIDE} pixels, {STEPS} steps\n")
    with tempfile.TemporaryDirectory() as folder:
        models = [write_model(Path(folder) / str(scale), scale) for scale in SCALES]
        with running_service(models) as url:
            for model in models:
                report(model, measure(model, url, rounds))


def measure(model: Model, url: str, rounds: int) -> Times:
    """Every way's seconds, one number a round, after a warm-up."""
    engine = Engine(load(model.args), ModelUserConfig())
    web = httpx.Client(base_url=url, timeout=60)
    official = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    ways = ways_to_an_image(model, engine, web, official)
    times: Times = {name: [] for name in ways}
    try:
        for _ in range(WARM_UP + rounds):
            for name, way in ways.items():
                started = perf_counter()
                way()
                times[name].append(perf_counter() - started)
    finally:
        engine.stop()
        web.close()
        official.close()
    return {name: values[WARM_UP:] for name, values in times.items()}


def ways_to_an_image(
    model: Model, engine: Engine, web: httpx.Client, official: openai.OpenAI
) -> dict[str, Callable[[], object]]:
    """What is timed, by name. The first four make an image, each time of a new prompt, so
    that no embeddings are remembered."""
    pipeline = BarePipeline(model)
    prompts = new_prompts()
    extra = {"seed": 7, "num_inference_steps": STEPS}

    def job() -> ImageJob:
        return ImageJob("bench", next(prompts), (7,), SIDE, SIDE, num_inference_steps=STEPS)

    def body() -> dict[str, object]:
        return {"model": model.args.name, "prompt": next(prompts), **extra}

    def through_httpx() -> bytes:
        answer = web.post("/v1/images/generations", json=body()).raise_for_status()
        return base64.b64decode(answer.json()["data"][0]["b64_json"])

    def through_openai() -> bytes:
        name, prompt = model.args.name, next(prompts)
        answer = official.images.generate(model=name, prompt=prompt, extra_body=extra)
        assert answer.data is not None
        return base64.b64decode(answer.data[0].b64_json or "")

    def refused() -> None:
        asked = body() | {"loras": [{"name": UNKNOWN}]}
        answer = web.post("/v1/images/generations", json=asked)
        assert answer.status_code == httpx.codes.NOT_FOUND

    return {
        PIPELINE: lambda: encode(pipeline.image(job()), "png"),
        ENGINE: lambda: encode(engine.generate(job())[0].pixels, "png"),
        HTTPX: through_httpx,
        OPENAI: through_openai,
        HEALTH: lambda: web.get("/healthz").raise_for_status(),
        REFUSED: refused,
    }


def new_prompts() -> Iterator[str]:
    """Prompts of equal length, none twice."""
    return (f"a red fox in the snow, number {number}" for number in range(1000, 10000))


def report(model: Model, times: Times) -> None:
    """Prints what each way takes, and where the service's time goes."""
    print(f"### sd15 stand-in, UNet width x{model.scale}\n")
    print_table(
        ("way", "ms", "beyond the pipeline, ms", "of the pipeline's time"),
        [
            (
                way,
                in_ms(times[way]),
                in_ms(differences(times[way], times[PIPELINE])),
                quartiles(ratios(times[way], times[PIPELINE])),
            )
            for way in (PIPELINE, ENGINE, HTTPX, OPENAI)
        ],
    )
    handle = differences(times[REFUSED], times[HEALTH])
    rest = differences(differences(times[HTTPX], times[REFUSED]), times[ENGINE])
    print_table(
        ("share of a request through httpx", "ms"),
        [
            (f"HTTP, Serve's proxy, the ingress: {HEALTH}", in_ms(times[HEALTH])),
            (f"reading the body, a handle call: {REFUSED}, beyond that", in_ms(handle)),
            (ENGINE, in_ms(times[ENGINE])),
            ("the rest: the image through the handle, base64, JSON, threads", in_ms(rest)),
        ],
    )


def differences(left: list[float], right: list[float]) -> list[float]:
    """Of measurements that were taken side by side."""
    return [a - b for a, b in zip(left, right, strict=True)]


def in_ms(seconds: list[float]) -> str:
    """Median and quartiles."""
    return quartiles([value * 1e3 for value in seconds], digits=1)


if __name__ == "__main__":
    main()
