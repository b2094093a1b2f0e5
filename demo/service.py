"""The application of `serve_config.yaml` in processes of its own, which end with the block."""

import ctypes
import json
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.request import urlopen

import yaml

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"
START_TIMEOUT_S = 300
POLL_S = 0.5  # each look takes something from what is being started
SERVE = "Ray and Serve are up"
STOP_TIMEOUT_S = 60
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.ingress.http.proxy:guards",
}

SERVE_RUN = (str(Path(sys.executable).with_name("serve")), "run", "--address", "local")
IN_TURNS = (sys.executable, "-m", "demo.application")

Config = dict[str, object]


def demo_config(models: Collection[str]) -> Config:
    """`serve_config.yaml` with these of its models. Raises ValueError for one it does not have."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    return only(config, "tcd", *(f"model-{name}" for name in models))


def only(config: Config, *names: str) -> Config:
    """A config with these of its applications. Raises ValueError for one it does not have."""
    applications = config["applications"]
    assert isinstance(applications, list)
    missing = set(names) - {application["name"] for application in applications}
    if missing:
        raise ValueError(f"serve_config.yaml has no {', '.join(sorted(missing))}")
    return config | {"applications": [a for a in applications if a["name"] in names]}


@dataclass(frozen=True)
class Running:
    """The application, being started or at work.

    Attributes:
        process: from which all of its processes descend.
        tell: hears of each part when it is up.
    """

    config: Config
    url: str
    log: Path
    process: subprocess.Popen[bytes]
    tell: Callable[[str], None]
    begun: float = field(default_factory=time.monotonic)
    told: set[str] = field(default_factory=set)

    def wait_until_ready(self, *models: str, patience_s: float = math.inf) -> None:
        """Returns when these models answer; without names, all of the config's. Raises SystemExit
        with the log's end if the application ends, or they are not ready in time."""
        wanted = models or _models(self.config)
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            if (status := self.process.poll()) is not None:
                raise SystemExit(failed(f"the application ended with {status}", self.log))
            seen = up(self.url, *wanted)
            for part in seen.parts:
                if part not in self.told:
                    self.tell(f"  {time.monotonic() - self.begun:5.2f} s  {part}")
                    self.told.add(part)
            if seen.ready:
                return
            time.sleep(POLL_S)
        raise SystemExit(failed(f"not ready within {patience_s:g} s", self.log))


@contextmanager
def running(config: Config, name: str, *, tell: Callable[[str], None] = print) -> Iterator[Running]:
    """Start the application, wait until its models are ready, and yield it.

    A free port is taken. `name` names the config and the log in `out`. Raises SystemExit with the
    log's end if the application does not come up.
    """
    with starting(config, name, tell=tell) as started:
        started.wait_until_ready(patience_s=START_TIMEOUT_S)
        yield started


@contextmanager
def starting(
    config: Config,
    name: str,
    *,
    first: str | None = None,
    tell: Callable[[str], None] = print,
) -> Iterator[Running]:
    """`running` without waiting. `first`: of its models, as `demo.application` runs it."""
    OUT.mkdir(exist_ok=True)
    port, log, file = free_port(), OUT / f"{name}.log", OUT / f"{name}_config.yaml"
    http = {"host": "127.0.0.1", "port": port}
    file.write_text(yaml.safe_dump(config | {"http_options": http}, sort_keys=False))
    url = f"http://127.0.0.1:{port}"
    tell(f"starting {url} with {len(_models(config))} models (log: {shown(log)})")
    with log.open("wb") as output, process(file, output, first) as started:
        yield Running(config, url, log, started, tell)


@contextmanager
def process(
    config: Path, output: IO[bytes] | None = None, first: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A config on a Ray instance of its own, which ends with the block. `first`: as in `starting`.

    Both have a session of their own: a signal that was meant for this process and its group
    (Ctrl-C, or a supervisor's SIGTERM) would end Ray's node under the program that is to stop it.
    If this process is killed, Linux tells them to stop.
    """
    command = [*SERVE_RUN, str(config)] if first is None else [*IN_TURNS, str(config), first]
    with child(command, ENVIRONMENT, output, STOP_TIMEOUT_S) as started:
        yield started


@contextmanager
def child(
    command: Sequence[str],
    variables: Mapping[str, str],
    output: IO[bytes] | None,
    patience_s: float,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program with a session of its own, which is interrupted when the block ends, or this
    process, and killed if it has not ended `patience_s` later.

    Args:
        variables: of its environment, beside this process's.
        output: where what it says goes; `None`: where this process's goes.
    """
    started = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        env={**os.environ, **variables},
        start_new_session=True,
        preexec_fn=_hear_of_the_end,
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGINT)
        try:
            started.wait(patience_s)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def have_written(*words: str) -> None:
    """Has `demo.standins` write what is not there; what libraries say of it goes to a log. Raises
    SystemExit with its end."""
    OUT.mkdir(exist_ok=True)
    log = OUT / "standins.log"
    with log.open("wb") as output:
        ran = subprocess.run([sys.executable, "-m", "demo.standins", *words], stderr=output)
    if ran.returncode:
        raise SystemExit(failed("the models could not be written", log))


def _models(config: Config) -> list[str]:
    applications = config["applications"]
    assert isinstance(applications, list)
    names = [application["name"] for application in applications]
    return [name.removeprefix("model-") for name in names if name.startswith("model-")]


def _hear_of_the_end() -> None:
    # A shell's background job ignores SIGINT, and its children would.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def address(config: Config) -> str:
    """Where a config has the service listen."""
    http = config.get("http_options") or {}
    assert isinstance(http, dict)
    return f"http://{http.get('host', '127.0.0.1')}:{http.get('port', 8000)}"


@dataclass(frozen=True)
class Up:
    """What of a service is up. `ready`: all that was asked for."""

    parts: Sequence[str] = ()
    ready: bool = False


def up(url: str, *models: str) -> Up:
    """Whether these models answer: as `/readyz` says, and before it is there as Serve's proxy
    does."""
    try:
        with urlopen(f"{url}/readyz?models={','.join(models)}", timeout=5) as answer:
            status, body = answer.status, answer.read()
    except HTTPError as error:
        status, body = error.code, error.read()
    except (OSError, HTTPException):  # refused, timed out, or somebody else's port
        return Up()
    try:
        known = json.loads(body)["availability"]
    except (ValueError, KeyError, TypeError):  # the proxy's own, before the ingress is up
        return Up((SERVE,))
    ended = {"ready": "is ready", "failed": "failed: the log says why"}
    told = (f"{name} {ended[state]}" for name, state in known.items() if state in ended)
    return Up((SERVE, "the ingress is up", *told), status == 200)


def failed(what: str, log: Path) -> str:
    """What went wrong, after the log's end."""
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    return f"{tail}\n{what}; the whole log: {shown(log)}"


def free_port() -> int:
    """One that nobody listens on now, and that is given to nobody who asks for any: a cluster
    that starts asks for dozens (Linux gives from 32768 on, Ray's workers take up to 19999)."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def shown(path: Path) -> str:
    """The path as a person in this folder would type it."""
    return os.path.relpath(path)
