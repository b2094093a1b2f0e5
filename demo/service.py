"""The application of `serve_config.yaml` in processes of its own, which end with the block."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.request import urlopen

import yaml

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"
START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 60
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.ingress.http.proxy:guards",
}

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
    ready = f"{url}/readyz?models={','.join(_models(config))}"
    with log.open("wb") as output, process(file, output) as started:
        _wait_until_ready(ready, started, log, tell)
        yield url


@contextmanager
def process(config: Path, output: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """`serve run` on a Ray instance of its own, which ends with the block.

    Both have a session of their own: a signal that was meant for this process and its group
    (Ctrl-C, or a supervisor's SIGTERM) would end Ray's node under the program that is to stop it.
    If this process is killed, Linux tells them to stop.
    """
    serve = Path(sys.executable).with_name("serve")
    started = subprocess.Popen(
        [serve, "run", "--address", "local", config],
        cwd=ROOT,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        env={**os.environ, **ENVIRONMENT},
        start_new_session=True,
        preexec_fn=_stop_with_the_parent if sys.platform == "linux" else None,
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGINT)
        try:
            started.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def _models(config: Config) -> list[str]:
    applications = config["applications"]
    assert isinstance(applications, list)
    names = [application["name"] for application in applications]
    return [name.removeprefix("model-") for name in names if name.startswith("model-")]


def _stop_with_the_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _wait_until_ready(
    url: str, started: subprocess.Popen[bytes], log: Path, tell: Callable[[str], None]
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    told = ""
    while time.monotonic() < deadline:
        if started.poll() is not None:
            raise SystemExit(_failed(f"the application ended with {started.returncode}", log))
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
