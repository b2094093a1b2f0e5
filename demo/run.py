"""`make demo`: starts the application on the demo models, makes an image over HTTP, stops.

Only the model that it uses is started; everything else is as `serve_config.yaml` says.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import yaml

from demo.standins import MODELS, write_all

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"
MODEL = "sd15"
STEPS = 8
PROMPT = "a red ball on a green table, soft light"
START_TIMEOUT_S = 180


def main() -> None:
    """Prints what it does, how long each part takes, and where the picture is."""
    started = time.perf_counter()
    # However this ends, the application ends with it. (A shell's background job ignores SIGINT,
    # and its children would.)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    OUT.mkdir(exist_ok=True)
    write_all(MODELS)
    port = _free_port()
    config = OUT / "demo_config.yaml"
    config.write_text(_config_for_one_model(port))
    url = f"http://127.0.0.1:{port}"
    print(f"starting the application on {url} (log: {_shown(OUT / 'demo.log')})", flush=True)
    with _application(config) as process:
        _wait_until_ready(url, process)
        print(f"ready after {time.perf_counter() - started:.1f} s", flush=True)
        asked = time.perf_counter()
        picture = _generate(url)
        took = time.perf_counter() - asked
        file = OUT / "demo.png"
        file.write_bytes(picture)
        print(f"{STEPS} steps in {took:.2f} s over HTTP: {_shown(file)}", flush=True)
        print("stopping", flush=True)
    print(f"done in {time.perf_counter() - started:.1f} s", flush=True)


def _config_for_one_model(port: int) -> str:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    wanted = {"tcd", f"model-{MODEL}"}
    config["applications"] = [a for a in config["applications"] if a["name"] in wanted]
    return yaml.safe_dump(config, sort_keys=False)


@contextmanager
def _application(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`serve run` on a Ray instance of its own, which ends with it."""
    serve = Path(sys.executable).with_name("serve")
    with (OUT / "demo.log").open("wb") as log:
        process = subprocess.Popen(
            [serve, "run", "--address", "local", config],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    shown = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(_failed(f"the application ended with status {process.returncode}"))
        try:
            with urlopen(f"{url}/readyz", timeout=5):
                return
        except OSError as error:  # refused, timed out, or an answer that is not 200
            state = error.read().decode() if hasattr(error, "read") else "starting Ray"
        if state != shown:
            print(f"  {state}", flush=True)
            shown = state
        time.sleep(0.5)
    raise SystemExit(_failed(f"not ready within {START_TIMEOUT_S} s"))


def _failed(what: str) -> str:
    tail = "\n".join((OUT / "demo.log").read_text(errors="replace").splitlines()[-30:])
    return f"{tail}\n{what}; the whole log: {_shown(OUT / 'demo.log')}"


def _generate(url: str) -> bytes:
    """Streams one image, with a line for every preview, and returns the file's bytes."""
    body = {
        "model": MODEL,
        "prompt": PROMPT,
        "num_inference_steps": STEPS,
        "seed": 7,
        "stream": True,
        "partial_images": 3,
    }
    request = Request(
        f"{url}/v1/images/generations",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    print(f'"{PROMPT}"', flush=True)
    with urlopen(request, timeout=START_TIMEOUT_S) as answer:
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise SystemExit(event["error"]["message"])
            if event["type"] == "image_generation.partial_image":
                done = event["step"]
                bar = "#" * (20 * done // STEPS)
                print(f"  [{bar:<20}] step {done} of {STEPS}", flush=True)
            else:
                print(f"  [{'#' * 20}] step {STEPS} of {STEPS}", flush=True)
                return base64.b64decode(event["b64_json"])
    raise SystemExit("the stream ended without an image")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _shown(path: Path) -> str:
    return os.path.relpath(path)


if __name__ == "__main__":
    main()
