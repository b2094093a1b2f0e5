"""The command line of every peer's server."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ENVIRONMENT = "PEER_OPTIONS"  # for processes that a server starts itself


@dataclass(frozen=True)
class Options:
    """What a server is started with.

    Attributes:
        adapters: files by name.
        keep: adapters loaded at a time, the most recent; 0: all from the start.
        batch: most rows a batch.
        wait_ms: that a batch waits for further rows.
        threads: of torch, in each worker.
        workers: processes with a model each.
        ongoing: requests that one replica of Ray Serve takes at a time.
    """

    port: int
    checkpoint: str
    tcd_lora: str
    adapters: dict[str, str] = field(default_factory=dict)
    keep: int = 0
    batch: int = 8
    wait_ms: float = 5.0
    threads: int = 1
    workers: int = 1
    ongoing: int = 5

    def arguments(self) -> list[str]:
        """As a command line."""
        plain = {name: value for name, value in asdict(self).items() if name != "adapters"}
        listed = [f"--{name.replace('_', '-')}={value}" for name, value in plain.items()]
        return [*listed, *(f"--adapter={name}={file}" for name, file in self.adapters.items())]

    def publish(self) -> None:
        """For the processes that this one starts."""
        os.environ[ENVIRONMENT] = json.dumps(asdict(self))


def published() -> Options:
    """What the process that started this one published."""
    return Options(**json.loads(os.environ[ENVIRONMENT]))


def parsed(arguments: Sequence[str] | None = None) -> Options:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--tcd-lora", required=True)
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=FILE")
    for name in ("keep", "batch", "threads", "workers", "ongoing"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Options, name))
    parser.add_argument("--wait-ms", type=float, default=Options.wait_ms)
    found = vars(parser.parse_args(arguments))
    adapters = dict(entry.split("=", 1) for entry in found.pop("adapter"))
    return Options(**found, adapters=adapters)


def call_this_process(role: str) -> None:
    """Names it for whoever looks at the process tree; Linux keeps 15 characters."""
    Path("/proc/self/comm").write_text(f"peer-{role}"[:15])
