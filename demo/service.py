"""The application of `serve_config.yaml` in processes of its own, which end with the block."""

import ctypes
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.request import urlopen

import yaml

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"
START_TIMEOUT_S = 300
POLL_S = 0.2
SERVE = "Ray and Serve are up"
STOP_TIMEOUT_S = 60
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.ingress.http.proxy:guards",
}

SERVE_RUN = (str(Path(sys.executable).with_name("serve")), "run", "--address", "local")
BRIEF = (sys.executable, "-m", "demo.application")

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


@dataclass(frozen=True)
class Running:
    """The application at work.

    Attributes:
        pid: of the process from which all of its processes descend.
    """

    url: str
    pid: int
    log: Path


@contextmanager
def running(
    config: Config, name: str, *, tell: Callable[[str], None] = print, brief: bool = False
) -> Iterator[str]:
    """Start the application, wait until its models are ready, and yield its URL.

    A free port is taken. `name` names the config and the log in `out`; `brief`: as
    `demo.application` runs it. Raises SystemExit with the log's end if the application does not
    come up.
    """
    with running_processes(config, name, tell=tell, brief=brief) as application:
        yield application.url


@contextmanager
def running_processes(
    config: Config, name: str, *, tell: Callable[[str], None] = print, brief: bool = False
) -> Iterator[Running]:
    """`running`, for those who look at its processes too."""
    OUT.mkdir(exist_ok=True)
    port = free_port()
    file, log = OUT / f"{name}_config.yaml", OUT / f"{name}.log"
    http = {"host": "127.0.0.1", "port": port}
    file.write_text(yaml.safe_dump(config | {"http_options": http}, sort_keys=False))
    url = f"http://127.0.0.1:{port}"
    tell(f"starting {url} with {len(_models(config))} models (log: {shown(log)})")
    program = BRIEF if brief else SERVE_RUN
    with log.open("wb") as output, process(file, output, program) as started:
        wait_until_ready(config, url, started, log, tell, START_TIMEOUT_S)
        yield Running(url, started.pid, log)


@contextmanager
def process(
    config: Path, output: IO[bytes] | None = None, program: Sequence[str] = SERVE_RUN
) -> Iterator[subprocess.Popen[bytes]]:
    """A config on a Ray instance of its own, which ends with the block.

    Both have a session of their own: a signal that was meant for this process and its group
    (Ctrl-C, or a supervisor's SIGTERM) would end Ray's node under the program that is to stop it.
    If this process is killed, Linux tells them to stop.
    """
    with child([*program, str(config)], ENVIRONMENT, output, STOP_TIMEOUT_S) as started:
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


def wait_until_ready(
    config: Config,
    url: str,
    started: subprocess.Popen[bytes],
    log: Path,
    tell: Callable[[str], None],
    patience_s: float = math.inf,
) -> None:
    """Returns when all models of a config answer, and tells of each part when it is up. Raises
    SystemExit with the log's end if the application ends, or is not ready in time."""
    url = f"{url}/readyz?models={','.join(_models(config))}"
    begun = time.monotonic()
    told: set[str] = set()
    while time.monotonic() < begun + patience_s:
        if started.poll() is not None:
            raise SystemExit(failed(f"the application ended with {started.returncode}", log))
        up = _up(url)
        for part in up.parts:
            if part not in told:
                tell(f"  {time.monotonic() - begun:5.2f} s  {part}")
                told.add(part)
        if up.ready:
            return
        time.sleep(POLL_S)
    raise SystemExit(failed(f"not ready within {patience_s:g} s", log))


@dataclass(frozen=True)
class _Up:
    """What of a service is up. `ready`: all that was asked for."""

    parts: Sequence[str] = ()
    ready: bool = False


def _up(url: str) -> _Up:
    """As `/readyz` says, and before it is there as Serve's proxy does."""
    try:
        with urlopen(url, timeout=5) as answer:
            status, body = answer.status, answer.read()
    except HTTPError as error:
        status, body = error.code, error.read()
    except OSError:  # refused, or timed out
        return _Up()
    try:
        known = json.loads(body)["availability"]
    except (ValueError, KeyError, TypeError):  # the proxy's own, before the ingress is up
        return _Up((SERVE,))
    ended = {"ready": "is ready", "failed": "failed: the log says why"}
    models = (f"{name} {ended[state]}" for name, state in known.items() if state in ended)
    return _Up((SERVE, "the ingress is up", *models), status == 200)


def failed(what: str, log: Path) -> str:
    """What went wrong, after the log's end."""
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    return f"{tail}\n{what}; the whole log: {shown(log)}"


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shown(path: Path) -> str:
    """The path as a person in this folder would type it."""
    return os.path.relpath(path)
