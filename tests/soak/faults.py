"""Faults that are done to the service on purpose, one after the other, and what each may cost."""

import asyncio
import random
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.soak import processes
from tests.soak.disk import SmallDisk
from tests.soak.gate import Gate, Mode
from tests.soak.ledger import Entry, Ledger
from tests.soak.load import Crowd

RECOVERY_S = 120.0
AFTERWARDS_S = 5.0  # in which answers that a fault had begun to spoil still come
OUTAGE_REQUESTS = 4
NOTHING: frozenset[str] = frozenset()
# What a client sees of a process that dies with its request in hand.
LOST = frozenset({"plain-text 500", "cut", "cut stream", "no connection"})
# A killed ingress takes its streams along, a proxy every connection; no other process may cost an
# answer.
COSTS = {
    "tcd/Ingress": LOST,
    "proxy": LOST,
}


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong for a while.

    Attributes:
        costs: shapes of failures that it explains.
        do: has it happen, to its end; says what exactly was harmed.
    """

    name: str
    costs: frozenset[str]
    do: Callable[[], Awaitable[str]]


@dataclass(frozen=True)
class Happened:
    """A fault that was. Times are the ledger's.

    Attributes:
        recovered_at: all processes were there again and every model answered; `None`: not in time.
    """

    name: str
    detail: str
    costs: frozenset[str]
    began_at: float
    ended_at: float
    recovered_at: float | None

    def covers(self, entry: Entry) -> bool:
        """Whether the request was under way while the fault was felt."""
        assert entry.ended_at is not None
        until = float("inf") if self.recovered_at is None else self.recovered_at + AFTERWARDS_S
        return entry.asked_at <= until and entry.ended_at >= self.began_at

    def explains(self, entry: Entry) -> bool:
        """Whether it may have cost this failure."""
        assert entry.ending is not None
        return self.covers(entry) and entry.ending.shape in self.costs


def kill(kind: str) -> Fault:
    """kill -9 of one process of a kind."""

    async def do() -> str:
        victim = await _victim(kind)
        await asyncio.to_thread(processes.kill, victim)
        return f"process {victim.pid}"

    return Fault(f"kill -9 {kind}", COSTS.get(kind, NOTHING), do)


def stop(kind: str, seconds: float) -> Fault:
    """SIGSTOP of one process of a kind. Serve kills one that stays silent for long, which costs
    what that costs."""

    async def do() -> str:
        victim = await _victim(kind)
        with processes.stopped(victim):
            await asyncio.sleep(seconds)
        return f"process {victim.pid}"

    return Fault(f"SIGSTOP {kind} for {seconds:g} s", COSTS.get(kind, NOTHING), do)


def engine_fault(kind: str, broken: Path) -> Fault:
    """The engine of one replica breaks within (`tests/soak/inside`): its process ends by itself.
    `broken`: the folder of those whose engine is to break."""

    async def do() -> str:
        victim = await _victim(kind)
        asked = broken / str(victim.pid)
        asked.touch()
        ended = await asyncio.to_thread(
            processes.wait_until, lambda: victim not in processes.processes()
        )
        asked.unlink()
        if not ended:
            raise RuntimeError(f"the engine of process {victim.pid} did not break")
        return f"process {victim.pid}"

    return Fault(f"engine fault in {kind}", NOTHING, do)


def outage(of: str, gate: Gate, mode: Mode, seconds: float, crowd: Crowd, kind: str) -> Fault:
    """S3 or the hub answers in another way. `kind`: requests that need it, of which a few are sent
    meanwhile and one when it is over."""

    async def do() -> str:
        before = gate.asked
        draw = random.Random(mode)
        gate.change(mode)
        async with asyncio.TaskGroup() as asked:
            for _ in range(OUTAGE_REQUESTS):
                asked.create_task(crowd.of_kind(kind, draw))
            await asyncio.sleep(seconds)
            gate.change("open")
        await crowd.of_kind(kind, draw)
        return f"{gate.asked - before} connections"

    return Fault(f"{of} {mode} for {seconds:g} s", NOTHING, do)


def full_disk(disk: SmallDisk, seconds: float) -> Fault:
    """The folder of pictures by URL takes nothing more."""

    async def do() -> str:
        with disk.full():
            await asyncio.sleep(seconds)
        return "no space left" if disk.mounted else "a file in the folder's place"

    return Fault(f"full disk for {seconds:g} s", NOTHING, do)


def clock_jump(clock: Path, jump_s: float, seconds: float) -> Fault:
    """The wall clock of all processes is off, and then right again. `clock`: the file that says by
    how much (`tests/soak/inside`).

    Serve's controller asks for health when the wall clock says so: set back by an hour, it would
    ask nobody for an hour, and replace nothing that dies. What docs/operations.md says against
    that is done here: it is killed, and starts anew.
    """

    async def do() -> str:
        # In its place: other processes have the file mapped.
        with clock.open("r+b", buffering=0) as offset:
            offset.write(struct.pack("d", jump_s))
            try:
                await asyncio.sleep(seconds)
            finally:
                offset.seek(0)
                offset.write(struct.pack("d", 0.0))
        if jump_s < 0:
            return "all processes"
        controller = await _victim("controller")
        await asyncio.to_thread(processes.kill, controller)
        return f"all processes; then kill -9 of the controller, process {controller.pid}"

    return Fault(f"clock off by {jump_s:+g} s for {seconds:g} s", NOTHING, do)


def cancelled_burst(crowd: Crowd, count: int) -> Fault:
    """Very many requests at once, all of which are left."""

    async def do() -> str:
        await crowd.burst(random.Random(count), count, leaving=1.0)
        return ""

    return Fault(f"burst of {count}, left", NOTHING, do)


async def happened(
    fault: Fault, ledger: Ledger, whole: Counter[str], ready: Callable[[], bool]
) -> Happened:
    """Has a fault happen, and waits until nothing is missing.

    Args:
        whole: how many processes of each kind there are when all is well.
        ready: whether every model answers.
    """
    began = ledger.now()
    detail = await fault.do()
    ended = ledger.now()
    recovered = await asyncio.to_thread(
        processes.wait_until, lambda: whole <= processes.counted() and ready(), RECOVERY_S
    )
    at = ledger.now() if recovered else None
    return Happened(fault.name, detail, fault.costs, began, ended, at)


def unexplained(entries: Sequence[Entry], faults: Sequence[Happened]) -> list[Entry]:
    """Those that no fault may have cost."""
    return [entry for entry in entries if not any(fault.explains(entry) for fault in faults)]


async def _victim(kind: str) -> processes.Process:
    """One of a kind, once there is one."""
    await asyncio.to_thread(processes.wait_until, lambda: bool(processes.of_kind(kind)))
    return random.choice(await asyncio.to_thread(processes.of_kind, kind))
