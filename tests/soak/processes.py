"""The processes of the cluster that this process has joined: Serve's own, and every replica.

Asked of Ray's table of actors, which answers while Serve's controller is stopped or dead.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
from ray._private.state import actors

REPLICA = "SERVE_REPLICA::"
SERVES_OWN = {"SERVE_CONTROLLER_ACTOR": "controller", "SERVE_PROXY_ACTOR": "proxy"}


@dataclass(frozen=True, order=True)
class Process:
    """One actor's process. `kind`: "controller", "proxy", or application/deployment."""

    kind: str
    pid: int


@dataclass(frozen=True)
class Use:
    """What a process holds. `memory`: bytes that it shares with no other."""

    memory: int
    handles: int
    threads: int


def processes() -> list[Process]:
    """Those that run, by kind."""
    found: list[Process] = []
    for actor in actors().values():
        kind = _kind(actor["Name"])
        if actor["State"] == "ALIVE" and kind is not None and _lives(actor["Pid"]):
            found.append(Process(kind, actor["Pid"]))
    return sorted(found)


def of_kind(kind: str) -> list[Process]:
    """Those of one kind."""
    return [process for process in processes() if process.kind == kind]


def counted() -> Counter[str]:
    """How many there are of each kind."""
    return Counter(process.kind for process in processes())


def use(process: Process) -> Use | None:
    """What it holds now; `None` if it has just ended."""
    try:
        known = psutil.Process(process.pid)
        memory = known.memory_info()
        return Use(memory.rss - memory.shared, known.num_fds(), known.num_threads())
    except psutil.Error:
        return None


def kill(process: Process) -> None:
    """As the kernel does it when memory is short. Returns once it is gone."""
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not _lives(process.pid))


@contextmanager
def stopped(process: Process) -> Iterator[None]:
    """It does nothing within the block, and goes on after it if nobody has replaced it."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if _lives(process.pid):
            os.kill(process.pid, signal.SIGCONT)


def wait_until(condition: Callable[[], bool], timeout_s: float = 90) -> bool:
    """Whether it came about in this time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _lives(pid: int) -> bool:
    """Ray's table hears of a death a little later."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kind(name: str) -> str | None:
    if name.startswith(REPLICA):
        application, deployment, _ = name.removeprefix(REPLICA).split("#")
        return f"{application}/{deployment}"
    for begin, kind in SERVES_OWN.items():
        if name.startswith(begin):
            return kind
    return name or None
