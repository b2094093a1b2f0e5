"""The settings each server is measured with, and how they were found.

Batches of 16: by CPU seconds an image of `python -m benchmarks.peers.sweep bare`, uniform traffic,
one thread, on a busy machine: 0.157, 0.119, 0.101, 0.073, 0.058, 0.051 at batches of 1, 2, 4, 8, 16
and 32 (UNet x1); 0.38, 0.19, 0.17, 0.20, 0.13 at 1 to 16 (x4). 32 saves little more and doubles the
wait; LitServe came to 0.071 at 8 and 0.055 at 16. Ours did not gain (0.124 at 8, 0.141 at 16), and
keeps its default of 8. A replica of Ray Serve must take more than a
batch, or none is full. Two threads or two workers were not compared: that needs two idle cores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        workers: processes with a model each; of ours replicas.
        ongoing: requests that one replica of Ray Serve's peers takes at a time.
    """

    batch: int = 8
    wait_ms: float = 5.0
    threads: int = 1
    workers: int = 1
    ongoing: int = 5

    def shown(self, name: Name) -> str:
        """Those that this server heeds."""
        told = [f"{self.workers} workers", f"{self.threads} threads"]
        if name not in ("fastapi", "ray-tutorial"):
            told.append(f"batches of {self.batch}")
        if name in ("ray-batch", "litserve"):
            told.append(f"wait of {self.wait_ms:g} ms")
        if name in ("ray-tutorial", "ray-batch"):
            told.append(f"{self.ongoing} ongoing")
        return ", ".join(told)


BEST: dict[Name, Settings] = {
    "ours": Settings(),
    "fastapi": Settings(),
    "ray-tutorial": Settings(),
    "ray-batch": Settings(batch=16, ongoing=64),
    "litserve": Settings(batch=16),
    "engine": Settings(),
    "bare": Settings(batch=16),
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
    kinds = {"wait_ms": float, "batch": int, "threads": int, "workers": int, "ongoing": int}
    values: dict[str, float] = {}
    for pair in pairs.split(","):
        key, _, value = pair.partition("=")
        if key not in kinds:
            raise ValueError(f"{text!r}: {key!r} is none of {', '.join(kinds)}")
        values[key] = kinds[key](value)
    return values
