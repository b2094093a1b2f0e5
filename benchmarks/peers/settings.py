"""The settings each server is measured with; how they were found stands in docs/performance.md."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

Peer = Literal["fastapi", "ray-tutorial", "ray-batch", "litserve"]
Limit = Literal["engine", "bare"]
Name = Literal["ours", "fastapi", "ray-tutorial", "ray-batch", "litserve", "engine", "bare"]
PEERS: tuple[Peer, ...] = get_args(Peer)
LIMITS: tuple[Limit, ...] = get_args(Limit)
OURS: Literal["ours"] = "ours"
KEPT = 4  # adapters that a server keeps in the churn traffic, of 16


@dataclass(frozen=True)
class Settings:
    """Of one server.

    Attributes:
        batch: most rows a batch; of ours and of the engine `max_batch`.
        wait_ms: that a batch waits for further rows; ours has none.
        threads: of torch, in each worker.
        workers: processes with a model each; of ours replicas, of a limit all of it so often.
        ongoing: requests that one replica of Ray Serve's peers takes at a time; it must be more
            than a batch, or none is full.
        pending: requests that a replica of ours takes at a time: all clients.
        haproxy: 1: ours behind Serve's own HAProxy.
        compiled: 1: ours with `compile: blocks`.
    """

    batch: int = 16
    wait_ms: float = 5.0
    threads: int = 1
    workers: int = 1
    ongoing: int = 5
    pending: int = 1024
    haproxy: int = 0
    compiled: int = 0

    def shown(self, name: Name) -> str:
        """Those that this server heeds."""
        told = [f"{self.workers} workers", f"{self.threads} threads"]
        if name not in ("fastapi", "ray-tutorial"):
            told.append(f"batches of {self.batch}")
        if name in ("ray-batch", "litserve"):
            told.append(f"wait of {self.wait_ms:g} ms")
        if name in ("ray-tutorial", "ray-batch"):
            told.append(f"{self.ongoing} ongoing")
        if name == OURS:
            told += ["HAProxy"] * self.haproxy + ["compiled blocks"] * self.compiled
        return ", ".join(told)


# How each is read from text.
READ: Mapping[str, Callable[[str], float]] = {
    field.name: float if field.name == "wait_ms" else int for field in fields(Settings)
}
BEST: dict[Name, Settings] = {
    "ours": Settings(),
    "fastapi": Settings(),
    "ray-tutorial": Settings(),
    "ray-batch": Settings(ongoing=64),
    "litserve": Settings(),
    "engine": Settings(),
    "bare": Settings(),
}


def changed(given: Sequence[str]) -> dict[Name, Settings]:
    """`BEST` with changes such as "litserve:batch=16,threads=2".

    Raises ValueError for a wrong one.
    """
    settings = dict(BEST)
    for text in given:
        server, _, pairs = text.partition(":")
        name = next((name for name in settings if name == server), None)
        if name is None:
            raise ValueError(f"{text!r} names none of {', '.join(settings)}")
        settings[name] = replace(settings[name], **_values(text, pairs))
    return settings


def _values(text: str, pairs: str) -> dict[str, Any]:
    values: dict[str, float] = {}
    for pair in pairs.split(","):
        key, _, value = pair.partition("=")
        if key not in READ:
            raise ValueError(f"{text!r}: {key!r} is none of {', '.join(READ)}")
        values[key] = READ[key](value)
    return values
