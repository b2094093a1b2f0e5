"""The application of `serve_config.yaml` in processes of its own, which end with the block."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import yaml

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"
START_TIMEOUT_S = 300

Config = dict[str, object]


def demo_config(models: Collection[str]) -> Config:
    """`serve_config.yaml` with these of its models. Raises ValueError for one it does not have."""
    config: Config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    applications = config["applications"]
    assert isinstance(applications, list)
    wanted = {"tcd", *(f"model-{name}" for name in models)}
    missing = wanted - {application["name"] for application in applications}
    if missing:
        raise ValueError(f"serve_config.yaml has no {', '.join(sorted(missing))}")
    return config | {"applications": [a for a in applications if a["name"] in wanted]}


@contextmanager
def running(config: Config, name: str, *, tell: Callable[[str], None] = print) -> Iterator[str]:
    """Start the application, wait until its models are ready, and yield its URL.

    A free port is taken. `name` names the config and the log in `out`. Raises SystemExit with
    the log's end if the application does not come up.
    """
    OUT.mkdir(exist_ok=True)
    port = _free_port()
    file, log = OUT / f"{name}_config.yaml", OUT / f"{name}.log"
    http = {"host": "127.0.0.1", "port": port}
    file.write_text(yaml.safe_dump(config | {"http_options": http}, sort_keys=False))
    url = f"http://127.0.0.1:{port}"
    tell(f"starting the application on {url} (log: {shown(log)})")
    with _process(file, log) as process:
        _wait_until_ready(f"{url}/readyz?models={','.join(_models(config))}", process, log, tell)
        yield url


@contextmanager
def _process(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`serve run` on a Ray instance of its own, which ends with it."""
    serve = Path(sys.executable).with_name("serve")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [serve, "run", "--address", "local", config],
            cwd=ROOT,
            stdout=output,
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


def _models(config: Config) -> list[str]:
    applications = config["applications"]
    assert isinstance(applications, list)
    names = [application["name"] for application in applications]
    return [name.removeprefix("model-") for name in names if name.startswith("model-")]


def _wait_until_ready(
    url: str, process: subprocess.Popen[bytes], log: Path, tell: Callable[[str], None]
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    told = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(_failed(f"the application ended with {process.returncode}", log))
        try:
            with urlopen(url, timeout=5):
                return
        except HTTPError as error:
            # Serve's proxy is up before the ingress, and the ingress before it knows the models.
            state = "starting Serve" if error.code == 404 else error.read().decode()
        except OSError:  # refused, or timed out
            state = "starting Ray"
        if state != told:
            tell(f"  {state}")
            told = state
        time.sleep(0.5)
    raise SystemExit(_failed(f"not ready within {START_TIMEOUT_S} s", log))


def _failed(what: str, log: Path) -> str:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    return f"{tail}\n{what}; the whole log: {shown(log)}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shown(path: Path) -> str:
    """The path as a person in this folder would type it."""
    return os.path.relpath(path)
