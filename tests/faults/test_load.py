"""The service under mixed load while parts of it die, hang, and lose their clients.

The same load, ledger and faults as `make soak`, on the service that the other tests share, which is
left as whole as it was.
"""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest

from tests.conftest import STYLES
from tests.serving import Served
from tests.soak import faults, processes
from tests.soak.asking import POINTS, Asker, Leaving
from tests.soak.cluster import is_ready
from tests.soak.faults import Fault, Happened, happened, unexplained
from tests.soak.figures import AT_REST
from tests.soak.judging import Probes
from tests.soak.kinds import Kinds
from tests.soak.ledger import Ledger
from tests.soak.load import Crowd, Load
from tests.soak.making import Target

MODELS = ("sd15", "sdxl")
TARGET = Target(MODELS, "sd15", ((128, 128), (64, 64), (72, 104)), STYLES)
PATIENCE_S = 100.0
LOAD = Load(callers=3, burst_every_s=8.0, burst=6)


@dataclass(frozen=True)
class Site:
    """One test's ledger, and whatever asks in its name."""

    ledger: Ledger
    asker: Asker
    kinds: Kinds

    def crowd(self, load: Load = LOAD) -> Crowd:
        """Callers."""
        return Crowd(self.asker, [self.kinds], load, seed=1)

    def check(self, seen: Sequence[Happened] = ()) -> None:
        """Everything that was asked has ended once, and nothing failed but what had to."""
        for kind, account in self.ledger.accounts().items():
            assert account.balanced, (kind, account)
        lost = unexplained(self.ledger.of("failed"), seen)
        assert lost == [], lost
        assert all(fault.recovered_at is not None for fault in seen), seen


def on_site(served: Served, work: Callable[[Site], Awaitable[None]]) -> None:
    """Runs a test's work."""

    async def run() -> None:
        ledger = Ledger()
        asker = Asker(served.url, ledger, PATIENCE_S)
        try:
            await work(Site(ledger, asker, Kinds(served.url, TARGET, Probes(), seed=1)))
        finally:
            await asker.close()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def at_rest(served: Served) -> None:
    """What came before has ended."""
    assert rests(served)


def test_a_model_replica_and_the_map_store_die_under_load(served: Served) -> None:
    """No request is lost with them: each is answered, or refused for its own reasons."""

    async def work(site: Site) -> None:
        crowd = site.crowd()
        working = asyncio.create_task(crowd.run())
        whole = processes.counted()
        seen: list[Happened] = []
        for kind in ("model-sd15/Diffusion", "tcd/MapStore"):
            await asyncio.sleep(4)
            seen.append(await happen(served, site, faults.kill(kind), whole))
        await asyncio.sleep(3)
        async with asyncio.timeout(60):  # a crowd it was, however slow the machine is
            while len(site.ledger.of("answered")) <= 50:
                await asyncio.sleep(0.1)
        crowd.stop()
        await working
        site.check(seen)

    on_site(served, work)
    assert rests(served)


def test_clients_leave_at_every_point(served: Served) -> None:
    """Whatever the client had sent or seen when it went, nothing is left of its request."""

    async def work(site: Site) -> None:
        table = site.kinds.table()
        draw = random.Random(1)
        for kind in ("text", "text, many", "stream", "edit", "control, made here", "variation"):
            for point in POINTS:
                gone = [Leaving(point, moment) for moment in (0.2, 0.8)]
                await asyncio.gather(*(table[kind][1](site.asker, draw, one) for one in gone))
        site.check()
        assert len(site.ledger.of("cancelled")) > 15

    on_site(served, work)
    assert rests(served)


def test_a_burst_that_leaves(served: Served) -> None:
    """Sixty at once, and all gone: the next request finds an idle service."""

    async def work(site: Site) -> None:
        await site.crowd().burst(random.Random(1), 60, leaving=1.0)
        site.check()

    on_site(served, work)
    assert rests(served, within_s=10)


def test_what_a_dead_caller_has_asked_for_is_given_up(served: Served) -> None:
    """Nobody waits for it, and others would stand behind it."""
    long = {
        "model": "sd15",
        "prompt": "a",
        "size": "512x512",
        "num_inference_steps": 50,
        "guidance_scale": 4.0,
        "n": 4,
    }

    def asked() -> bool:
        return served.engine_figure("pending_images", "sd15") == long["n"]

    with ThreadPoolExecutor(1) as client:
        answer = client.submit(
            httpx.post, f"{served.url}/v1/images/generations", json=long, timeout=PATIENCE_S
        )
        assert processes.wait_until(asked, 30)
        (ingress,) = processes.of_kind("tcd/Ingress")
        os.kill(ingress.pid, signal.SIGKILL)
        assert answer.result().status_code == 503
    assert processes.wait_until(lambda: is_ready(served.url, MODELS), 60)
    assert rests(served, within_s=10)


async def happen(served: Served, site: Site, fault: Fault, whole: Counter[str]) -> Happened:
    return await happened(fault, site.ledger, whole, lambda: is_ready(served.url, MODELS))


def rests(served: Served, within_s: float = 30) -> bool:
    """Whether the engines have nothing to do, within this time."""
    names = [name.removeprefix("tcd_engine_") for name in AT_REST]

    def idle() -> bool:
        models = ("sd15", "sdxl", "small")
        return not any(served.engine_figure(name, model) for name in names for model in models)

    return processes.wait_until(idle, within_s)
