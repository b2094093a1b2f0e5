"""A server's processes: what each took of the CPU, and its memory."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePath

import psutil

REPLICA = re.compile(r"ray::ServeReplica:[^:]*:(?P<deployment>[\w-]+)")
# What a command line has in it, by what is shown; the first that fits.
ROLES = (
    ("ray::ServeController", "controller"),
    ("ray::ProxyActor", "proxy"),
    ("ray::HAProxyManager", "HAProxy's manager"),
    ("ray::IDLE", "idle worker"),
    ("ray::", "other actors"),
    ("runtime_env/agent", "runtime env agent"),
    ("dashboard/agent.py", "dashboard agent"),
    ("dashboard.py", "dashboard"),
    ("ray-dashboard-", "dashboard"),
    ("log_monitor.py", "log monitor"),
    ("monitor.py", "autoscaling monitor"),
    ("resource_tracker", "resource tracker"),
)


@dataclass(frozen=True)
class Seen:
    """One process at one moment."""

    role: str
    cpu_s: float


def role(comm: str, command: Sequence[str], *, root: bool) -> str:
    """What a process is, by its name and command line."""
    if comm.startswith("peer-"):
        return comm.removeprefix("peer-")
    line = " ".join(command)
    replica = REPLICA.match(line)
    if replica is not None:
        return replica["deployment"]
    for part, name in ROLES:
        if part in line:
            return name
    if root:
        return "main"
    program = PurePath(command[0]).name if command else comm
    return "python child" if program.startswith("python") else program


def seen(pid: int) -> dict[int, Seen]:
    """The process and all that descend from it."""
    root = psutil.Process(pid)
    found: dict[int, Seen] = {}
    for process in (root, *root.children(recursive=True)):
        try:
            with process.oneshot():
                times = process.cpu_times()
                what = role(process.name(), process.cmdline(), root=process.pid == pid)
                found[process.pid] = Seen(what, times.user + times.system)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def cpu_between(before: Mapping[int, Seen], after: Mapping[int, Seen]) -> dict[str, float]:
    """CPU seconds by role; of a process that ended in between nothing is known."""
    spent: defaultdict[str, float] = defaultdict(float)
    for pid, now in after.items():
        spent[now.role] += now.cpu_s - (before[pid].cpu_s if pid in before else 0.0)
    return dict(spent)


@contextmanager
def asleep(pid: int) -> Iterator[None]:
    """The process and all that descend from it stand still meanwhile: at rest some servers take
    a third of a core."""
    root = psutil.Process(pid)
    tree = [root, *root.children(recursive=True)]
    try:
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in reversed(tree):
            with suppress(psutil.NoSuchProcess):
                process.resume()


def memory_mib(pid: int) -> dict[str, float]:
    """By role: the proportional set size, where it cannot be read the resident."""
    found: defaultdict[str, float] = defaultdict(float)
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        try:
            what = role(process.name(), process.cmdline(), root=process.pid == pid)
            found[what] += _bytes(process) / 2**20
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return dict(found)


def _bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
