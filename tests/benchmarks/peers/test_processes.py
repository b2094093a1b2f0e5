"""Whose turn it is not stands still, with all that descends from it."""

import subprocess
import sys
import time

import psutil

from benchmarks.peers.processes import asleep, cpu_between, seen

BUSY = "while True: pass"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"


def spent_s(pid: int) -> float:
    before = seen(pid)
    time.sleep(0.3)
    return sum(cpu_between(before, seen(pid)).values())


def works(pid: int) -> bool:
    """Looks again where it had no turn: others want the processor, too."""
    return any(spent_s(pid) > 0 for _ in range(100))


def test_a_server_that_sleeps_takes_no_time() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT]) as parent:
        try:
            while not psutil.Process(parent.pid).children():
                time.sleep(0.01)
            assert works(parent.pid)
            with asleep(parent.pid):
                time.sleep(0.05)
                assert spent_s(parent.pid) == 0
            assert works(parent.pid), "it goes on"
        finally:
            for child in psutil.Process(parent.pid).children():
                child.kill()
            parent.kill()
