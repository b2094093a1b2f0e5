"""`make soak`: the demo's service under mixed load, with faults, for as long as you like."""

import argparse
import asyncio
import logging
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.service import OUT
from tests.soak import cluster, processes
from tests.soak.asking import Asker
from tests.soak.faults import Happened, happened
from tests.soak.figures import Sampler, busy
from tests.soak.judging import Probes
from tests.soak.kinds import Kinds
from tests.soak.ledger import Ledger
from tests.soak.load import Crowd, Load
from tests.soak.plan import plan
from tests.soak.report import Run, markdown, write_json
from tests.soak.servers import Servers, StorageKind, running_servers

PATIENCE_S = cluster.REQUEST_TIMEOUT_S + 60
SETTLING_S = 10.0  # between faults
FAULTY = 0.8  # of a run: the rest is load alone
REST_S = 60.0  # within which nothing may be left


@dataclass(frozen=True)
class Asked:
    """The command line. `only`: a pattern of the names of faults; `storage`: of results by URL."""

    minutes: float
    seed: int
    no_faults: bool
    only: str
    storage: StorageKind


def main() -> None:
    """Runs a soak, shows its report, and ends with 1 if a bar is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-faults", action="store_true", help="load alone")
    parser.add_argument("--only", default="", help="faults whose names have this pattern")
    parser.add_argument("--storage", choices=("folder", "s3"), default="folder")
    asked = Asked(**vars(parser.parse_args()))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's: a line a request
    # Stopped processes must go on, and the cluster must end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="soak", dir="/tmp") as folder:
        run = asyncio.run(soak(Path(folder), asked))
    OUT.mkdir(exist_ok=True)
    (OUT / "soak.md").write_text(markdown(run))
    write_json(run, OUT / "soak.json")
    print(markdown(run))
    sys.exit(1 if run.broken() else 0)


async def soak(folder: Path, asked: Asked) -> Run:
    """Load with faults, load alone, rest."""
    probes = Probes()
    async with running_servers(folder) as servers, _service(servers, asked.storage) as url:
        ledger = Ledger()
        asker = Asker(url, ledger, PATIENCE_S)
        target = cluster.target(servers.outside(asked.storage))
        kinds = [Kinds(url, target, probes, asked.seed, key) for key in servers.keys]
        crowd = Crowd(asker, kinds, Load(), asked.seed)
        with Sampler(url, ledger.now) as sampler:
            working = asyncio.create_task(crowd.run())
            seen = [] if asked.no_faults else await _faults(url, ledger, servers, crowd, asked)
            await asyncio.sleep(max(0.0, asked.minutes * 60 - ledger.now()))
            _tell(ledger, "rest")
            crowd.stop()
            await working
            await asyncio.to_thread(processes.wait_until, lambda: not busy(sampler.look()), REST_S)
            last = await asyncio.to_thread(sampler.look)
        await asker.close()
    samples = [*sampler.samples, last]
    return Run(asked.minutes, asked.seed, ledger, probes, seen, samples, busy(last))


async def _faults(
    url: str, ledger: Ledger, servers: Servers, crowd: Crowd, asked: Asked
) -> list[Happened]:
    """One after the other, as long as there is time."""
    whole = processes.counted()
    _tell(ledger, f"load on {url}; processes: {dict(whole)}")
    seen: list[Happened] = []
    for fault in plan(servers, crowd, whole, asked.seed):
        if not re.search(asked.only, fault.name):
            continue
        await asyncio.sleep(SETTLING_S)
        if ledger.now() > FAULTY * asked.minutes * 60:
            break
        _tell(ledger, fault.name)
        one = await happened(fault, ledger, whole, lambda: cluster.is_ready(url, cluster.MODELS))
        back = "NOT IN TIME" if one.recovered_at is None else f"{one.recovered_at:.0f}"
        _tell(ledger, f"  {one.detail}; whole again: {back}")
        seen.append(one)
    return seen


@asynccontextmanager
async def _service(servers: Servers, storage: StorageKind) -> AsyncIterator[str]:
    """Started and ended in threads: both block, and the gates must go on."""
    started = cluster.running(servers.outside(storage))
    url = await asyncio.to_thread(started.__enter__)
    try:
        yield url
    finally:
        await asyncio.to_thread(started.__exit__, None, None, None)


def _tell(ledger: Ledger, text: str) -> None:
    """Standard output is for the report."""
    print(f"{ledger.now():7.1f} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
