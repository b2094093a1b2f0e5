"""The servers that are measured: ours, and the peers'."""

import http.client
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, NoReturn
from urllib.parse import urlsplit

from benchmarks.models import Model
from benchmarks.peers.load import Load, Taken
from benchmarks.peers.servers.options import Options
from benchmarks.peers.settings import KEPT, OURS, Name, Peer, Settings
from benchmarks.peers.traffic import CHURNING, PATH, Request
from benchmarks.service import LOGICAL_CPUS, Tuning, tuned_service
from demo.service import OUT, ROOT, START_TIMEOUT_S, child, failed, free_port
from demo.standins import write_style_lora

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
MODULES: Mapping[Peer, str] = {
    "fastapi": "fastapi_lock",
    "ray-tutorial": "ray_tutorial",
    "ray-batch": "ray_batch",
    "litserve": "lit",
}
# Ray's workers are nice (15) by default: beside whatever else runs here, they would stand back
# where other servers do not.
EVEN = {"RAY_worker_niceness": "0"}
STOP_TIMEOUT_S = 30
FIRST = Request("a red fox in the snow", 7)


@dataclass(frozen=True)
class Server:
    """A server at work.

    Attributes:
        pid: of the process from which all of its processes descend.
        first_image_s: from its start.
    """

    name: Name
    model: str
    port: int
    pid: int
    log: Path
    first_image_s: float

    def taken(self, load: Load) -> Taken:
        """What comes of a load. Raises SystemExit with the log's end for a failure."""
        asked = json.dumps(asdict(load) | {"port": self.port, "model": self.model})
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers.load"],
            input=asked.encode(),
            capture_output=True,
            cwd=ROOT,
        )
        if done.returncode != 0:
            self.give_up(f"{self.name}: {done.stderr.decode(errors='replace')}")
        return Taken(**json.loads(done.stdout))

    def ask(self, request: Request) -> bytes:
        """The answer to one request. Raises SystemExit with the log's end for a failure."""
        try:
            status, body = _post(self.port, request.body(self.model))
        except (OSError, http.client.HTTPException) as error:
            self.give_up(f"{self.name}: {error!r}")
        if status != http.client.OK:
            self.give_up(f"{self.name} answered {status}: {body[:500].decode(errors='replace')}")
        return body

    def give_up(self, what: str) -> NoReturn:
        """Ends the run."""
        raise SystemExit(failed(what, self.log))


@contextmanager
def our_service(model: Model, settings: Settings, *, churn: bool) -> Iterator[Server]:
    """Ours; with `churn` it has room for `KEPT` adapters."""
    tuning = Tuning(
        our_limits(model, settings, churn=churn),
        settings.workers,
        settings.threads,
        "blocks" if settings.compiled else "off",
    )
    os.environ.update(EVEN)
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = str(settings.haproxy)
    began = time.perf_counter()
    with tuned_service([model], tuning) as service:
        port = urlsplit(service.url).port
        assert port is not None
        ours = Server(OURS, model.args.name, port, service.process.pid, service.log, 0.0)
        ours.ask(FIRST)
        yield replace(ours, first_image_s=time.perf_counter() - began)


def our_limits(model: Model, settings: Settings, *, churn: bool) -> dict[str, float]:
    """`limits` of the model's `user_config`."""
    limits: dict[str, float] = {"max_batch": settings.batch, "max_pending": settings.pending}
    if churn:
        size = Path(model.loras[CHURNING[0]]).stat().st_size
        limits["lora_budget_mb"] = math.ceil(KEPT * size / 2**20)
    return limits


@contextmanager
def peer_server(name: Peer, model: Model, settings: Settings, *, churn: bool) -> Iterator[Server]:
    """A peer; with `churn` it keeps `KEPT` adapters, else all."""
    options = Options(
        port=free_port(),
        checkpoint=str(model.checkpoint),
        tcd_lora=str(model.tcd_lora),
        adapters=model.loras,
        keep=KEPT if churn else 0,
        batch=settings.batch,
        wait_ms=settings.wait_ms,
        threads=settings.threads,
        workers=settings.workers,
        ongoing=settings.ongoing,
    )
    OUT.mkdir(exist_ok=True)
    log = OUT / f"bench-{name}.log"
    module = f"benchmarks.peers.servers.{MODULES[name]}"
    began = time.perf_counter()
    with log.open("wb") as output, _process(module, options, output) as started:
        while not _answers(options.port, FIRST.body(model.args.name)):
            late = time.perf_counter() - began > START_TIMEOUT_S
            if late or started.poll() is not None:
                raise SystemExit(failed(f"{name} did not come up", log))
            time.sleep(0.1)
        took = time.perf_counter() - began
        yield Server(name, model.args.name, options.port, started.pid, log, took)


@contextmanager
def _process(module: str, options: Options, output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    quiet = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    variables = LOGICAL_CPUS | EVEN | threads | quiet
    command = [str(PYTHON), "-m", module, *options.arguments()]
    with ExitStack() as afterwards, child(command, variables, output, STOP_TIMEOUT_S) as started:
        afterwards.callback(_kill_group, started.pid)
        yield started


def _kill_group(pid: int) -> None:
    """What a server that has ended left behind."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _answers(port: int, body: bytes) -> bool:
    try:
        status, _ = _post(port, body)
    except (OSError, http.client.HTTPException):
        return False
    return status == http.client.OK


def _post(port: int, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", PATH, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def with_churn(model: Model, folder: Path) -> Model:
    """The model with the adapters of the churn traffic, all of one size."""
    files = {name: folder / "churn" / f"{name}.safetensors" for name in CHURNING}
    for seed, file in enumerate(files.values(), start=1):
        write_style_lora("papercut", "sd15", model.checkpoint, file, seed=seed)
    return replace(model, loras={name: str(file) for name, file in files.items()})
