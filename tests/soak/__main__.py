"""`make soak`: the demo's service under mixed load, with faults, for as long as you like."""

import argparse
import asyncio
import logging
import random
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from demo.service import OUT, ROOT
from tests.fake_hub import fake_hub
from tests.serving import free_port
from tests.soak import cluster, faults, processes
from tests.soak.asking import Asker
from tests.soak.disk import SmallDisk, small_disk
from tests.soak.faults import Fault, Happened, happened
from tests.soak.figures import Sampler, busy
from tests.soak.gate import MODES, Gate
from tests.soak.judging import Probes
from tests.soak.kinds import HUB_STYLE, S3_STYLE, Kinds
from tests.soak.ledger import Ledger
from tests.soak.load import Crowd, Load
from tests.soak.report import Run, markdown, write_json

PATIENCE_S = cluster.REQUEST_TIMEOUT_S + 60
SETTLING_S = 10.0  # between faults
REST_S = 60.0  # within which nothing may be left
SHORT_S, LONG_S, OUTAGE_S = 8.0, 60.0, 15.0
DISTANT = 30  # style adapters in S3, and as many on the hub
REPO = "soak/styles"
STYLE = ROOT / "demo/weights/loras/sd15/ink.safetensors"
PICTURE = ROOT / "docs/images/demo.png"
# In the order of what is feared most: a short run gets through the first of them.
KINDS = (
    *("model-sd15/Diffusion", "tcd/MapStore", "model-sdxl/Diffusion", "tcd/Ingress"),
    *("tcd/Directory", "tcd/Depth", "tcd/Canny", "tcd/ImageEncoder-sd15", "tcd/Videos"),
    *("controller", "proxy"),
)
LONG_STOPS = ("model-sdxl/Diffusion", "tcd/MapStore", "tcd/Depth")


@dataclass(frozen=True)
class Servers:
    """What the service depends on, each behind a gate."""

    s3: Gate
    hub: Gate
    disk: SmallDisk
    clock: Path

    def outside(self) -> cluster.Outside:
        """As the service knows them."""
        bucket = f"s3://{cluster.BUCKET}"
        return cluster.Outside(
            files=self.disk.folder,
            clock=self.clock,
            s3=self.s3.url,
            hub=self.hub.url,
            s3_styles={f"s3-{i}": f"{bucket}/styles/{i}.safetensors" for i in _distant()},
            hub_styles={f"hub-{i}": f"{REPO}/{i}.safetensors" for i in _distant()},
            s3_pictures=tuple(f"{bucket}/pictures/{i}.png" for i in range(3)),
        )


def main() -> None:
    """The command line. Ends with 1 if a bar is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-faults", action="store_true", help="load alone")
    parser.add_argument("--only", default="", help="faults whose names hold this")
    asked = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's: a line a request
    # Stopped processes must go on, and the cluster must end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="soak", dir="/tmp") as folder:
        run = asyncio.run(
            soak(Path(folder), asked.minutes, asked.seed, not asked.no_faults, asked.only)
        )
    print(markdown(run))
    write_json(run, OUT / "soak.json")
    sys.exit(1 if run.broken() else 0)


async def soak(folder: Path, minutes: float, seed: int, with_faults: bool, only: str) -> Run:
    """One run: load for so many minutes, faults in the first two thirds of it, then rest."""
    ledger, probes = Ledger(), Probes()
    async with _servers(folder) as servers, _service(servers) as url:
        ledger = Ledger()
        asker = Asker(url, ledger, PATIENCE_S)
        kinds = Kinds(url, cluster.target(servers.outside()), probes, seed)
        crowd = Crowd(asker, kinds, Load(), seed)
        with Sampler(url, ledger.now) as sampler:
            whole = processes.counted()
            tell(ledger, f"load on {url}; processes: {dict(whole)}")
            working = asyncio.create_task(crowd.run())
            plan = _plan(servers, crowd, seed, only) if with_faults else []
            seen: list[Happened] = []
            for fault in plan:
                await asyncio.sleep(SETTLING_S)
                if ledger.now() > minutes * 40:
                    break
                tell(ledger, fault.name)
                one = await happened(fault, ledger, whole, lambda: cluster.is_ready(url, MODELS))
                seen.append(one)
                tell(ledger, f"  {one.detail}; whole again: {one.recovered_at or 'NOT IN TIME'}")
            await asyncio.sleep(max(0.0, minutes * 60 - ledger.now()))
            tell(ledger, "rest")
            crowd.stop()
            await working
            await asyncio.to_thread(processes.wait_until, lambda: not busy(sampler.look()), REST_S)
            left = busy(await asyncio.to_thread(sampler.look))
        await asker.close()
    return Run(minutes, seed, ledger, probes, seen, sampler.samples, left)


MODELS = cluster.MODELS


def tell(ledger: Ledger, text: str) -> None:
    """Standard output is for the report."""
    print(f"{ledger.now():7.1f} {text}", file=sys.stderr, flush=True)


def _plan(servers: Servers, crowd: Crowd, seed: int, only: str) -> list[Fault]:
    """Every fault once, the first three always the same."""
    draw = random.Random(seed)
    first = [faults.kill(KINDS[0]), faults.kill(KINDS[1]), faults.stop(KINDS[2], SHORT_S)]
    rest = [
        *(faults.kill(kind) for kind in KINDS[2:]),
        *(faults.stop(kind, SHORT_S) for kind in KINDS if kind != KINDS[2]),
        *(faults.stop(kind, LONG_S) for kind in LONG_STOPS),
        *(faults.outage("S3", servers.s3, mode, OUTAGE_S, crowd, S3_STYLE) for mode in MODES),
        *(faults.outage("hub", servers.hub, mode, OUTAGE_S, crowd, HUB_STYLE) for mode in MODES),
        faults.full_disk(servers.disk, OUTAGE_S),
        *(faults.clock_jump(servers.clock, jump, SHORT_S) for jump in (3600.0, -3600.0)),
        faults.cancelled_burst(crowd, 100),
    ]
    draw.shuffle(rest)
    return [fault for fault in first + rest if only in fault.name]


@asynccontextmanager
async def _servers(folder: Path) -> AsyncIterator[Servers]:
    """S3, a hub, and a disk."""
    style = STYLE.read_bytes()
    files = {f"{i}.safetensors": style for i in _distant()}
    port, clock = free_port(), folder / "clock"
    clock.write_bytes(bytes(8))
    with fake_hub({REPO: files}) as hub, _s3(port, style), small_disk(folder / "files", 8) as disk:
        hub_port = int(hub.url.rpartition(":")[2])
        async with Gate(port).listening() as s3_gate, Gate(hub_port).listening() as hub_gate:
            yield Servers(s3_gate, hub_gate, disk, clock)


@contextmanager
def _s3(port: int, style: bytes) -> Iterator[None]:
    """moto's server, with styles and pictures."""
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        client: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        client.create_bucket(Bucket=cluster.BUCKET)
        for i in _distant():
            client.put_object(Bucket=cluster.BUCKET, Key=f"styles/{i}.safetensors", Body=style)
        for i in range(3):
            key = f"pictures/{i}.png"
            client.put_object(Bucket=cluster.BUCKET, Key=key, Body=PICTURE.read_bytes())
        yield
    finally:
        server.stop()


@asynccontextmanager
async def _service(servers: Servers) -> AsyncIterator[str]:
    """Started and ended in threads: both block, and the gates must go on."""
    started = cluster.running(servers.outside())
    url = await asyncio.to_thread(started.__enter__)
    try:
        yield url
    finally:
        await asyncio.to_thread(started.__exit__, None, None, None)


def _distant() -> Sequence[int]:
    return range(DISTANT)


if __name__ == "__main__":
    main()
