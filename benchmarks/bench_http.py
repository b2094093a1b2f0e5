"""One idle request through HTTP against the bare pipeline call. Results in markdown.

    python -m benchmarks.bench_http [--rounds N]

The ways to the same image take turns. The pipeline and the engine run in this process; the
service runs as `make demo` starts it, in processes of its own.
"""

import argparse
import base64
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import httpx
import openai
import torch

from benchmarks.bare import BarePipeline, quiet_libraries
from benchmarks.models import SIDE, Model, write_model
from benchmarks.report import machine, print_table, ratios, spread
from benchmarks.service import running_service
from configs.app import ModelUserConfig
from deployments.contracts.jobs import ImageJob
from deployments.diffusion.engine.components import load
from deployments.diffusion.engine.engine import Engine
from deployments.ingress.media import encode

SCALES = (1, 4)
STEPS = 4
PROMPT = "a red fox in the snow"
WARM_UP = 5
UNKNOWN = "no-such-adapter"

PIPELINE = "diffusers pipeline and PNG encoding"
ENGINE = "engine in this process and PNG encoding"
HTTPX = "HTTP, httpx client"
OPENAI = "HTTP, openai client"
HEALTH = "`GET /healthz`"
REFUSED = "generation that the replica refuses"

Times = dict[str, list[float]]  # seconds by way


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_http")
    parser.add_argument("--rounds", type=int, default=25)
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
    """What is timed, by name. The first four make the same image."""
    pipeline = BarePipeline(model)
    job = ImageJob("bench", PROMPT, (7,), SIDE, SIDE, num_inference_steps=STEPS)
    extra = {"seed": 7, "num_inference_steps": STEPS}
    body = {"model": model.args.name, "prompt": PROMPT, **extra}

    def through_httpx() -> bytes:
        answer = web.post("/v1/images/generations", json=body).raise_for_status()
        return base64.b64decode(answer.json()["data"][0]["b64_json"])

    def through_openai() -> bytes:
        answer = official.images.generate(model=model.args.name, prompt=PROMPT, extra_body=extra)
        assert answer.data is not None
        return base64.b64decode(answer.data[0].b64_json or "")

    def refused() -> None:
        answer = web.post("/v1/images/generations", json=body | {"loras": [{"name": UNKNOWN}]})
        assert answer.status_code == httpx.codes.NOT_FOUND

    return {
        PIPELINE: lambda: encode(pipeline.image(job), "png"),
        ENGINE: lambda: encode(engine.generate(job)[0].pixels, "png"),
        HTTPX: through_httpx,
        OPENAI: through_openai,
        HEALTH: lambda: web.get("/healthz").raise_for_status(),
        REFUSED: refused,
    }


def report(model: Model, times: Times) -> None:
    """Prints what each way takes, and where the service's time goes."""
    print(f"### sd15 stand-in, UNet width x{model.scale}\n")
    bare = times[PIPELINE]
    print_table(
        ("way", "ms", "more than the pipeline, ms", "of the pipeline's time"),
        [
            (
                way,
                milliseconds(times[way]),
                milliseconds([a - b for a, b in zip(times[way], bare, strict=True)]),
                spread(ratios(times[way], bare)),
            )
            for way in (PIPELINE, ENGINE, HTTPX, OPENAI)
        ],
    )
    health, refused, engine, http = (
        median(times[way]) * 1e3 for way in (HEALTH, REFUSED, ENGINE, HTTPX)
    )
    print_table(
        ("share of a request through httpx", "ms"),
        [
            ("HTTP, Serve's proxy and the ingress (`GET /healthz`)", f"{health:.1f}"),
            (
                "the body and a handle call (what a refusal takes beyond that)",
                f"{refused - health:.1f}",
            ),
            ("the engine, PNG encoding (in this process)", f"{engine:.1f}"),
            (
                "the rest: image through the handle, base64, JSON, threads",
                f"{http - refused - engine:.1f}",
            ),
            ("all", f"{http:.1f}"),
        ],
    )


def milliseconds(seconds: list[float]) -> str:
    """Median and quartiles... of seconds, in ms."""
    return spread([value * 1e3 for value in seconds], digits=1)


if __name__ == "__main__":
    main()
