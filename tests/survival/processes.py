"""The processes of a service that this process has started: found by what they descend from."""

from collections.abc import Iterator

import psutil

REPLICA = "ServeReplica:"  # in the title of a replica's process, before application:deployment


def of_kind(root: int, kind: str) -> Iterator[psutil.Process]:
    """The replicas of a kind."""
    for process in _below(root):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if f"{REPLICA}{kind}" in title:
            yield process


def kill_kind(root: int, kind: str) -> bool:
    """Kills one replica of a kind (application:deployment); `False`: there is none now."""
    for process in of_kind(root, kind):
        process.kill()
        return True
    return False


def has_kind(root: int, kind: str) -> bool:
    """Whether there is a replica of a kind."""
    return any(True for _ in of_kind(root, kind))


def kill_tree(root: int) -> None:
    """Kills the root and all that descend from it, at once, and waits until they are gone."""
    every = [*_below(root), psutil.Process(root)]
    for process in every:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(every, timeout=30)


def _below(root: int) -> Iterator[psutil.Process]:
    yield from psutil.Process(root).children(recursive=True)
