"""Python runs this at its start where this folder is on its path: faults that come from within.

SOAK_CLOCK    a file: the wall clock is off by what it says, seconds as a double
SOAK_BREAK    a folder: when a file is there whose name is this process's id, the next step of
              its engine raises what no row is to blame for
"""

import mmap
import os
import struct
import sys
import threading
import time
from pathlib import Path


def move_clock(path: str) -> None:
    """From now on `time.time` is off by what the file says."""
    with open(path, "r+b") as file:
        offset = mmap.mmap(file.fileno(), 8)
    right = time.time

    def moved() -> float:
        return right() + float(struct.unpack_from("d", offset)[0])

    time.__dict__["time"] = moved


def break_engine(folder: str) -> None:
    """Waits for the file, on a thread of its own."""
    asked = Path(folder, str(os.getpid()))

    def step(*_: object) -> None:
        raise RuntimeError("the device is gone: the soak took it away")

    def wait() -> None:
        while not asked.exists():
            time.sleep(0.2)
        runner = sys.modules["deployments.diffusion.engine.steps.runner"].__dict__["Runner"]
        runner.run = step

    threading.Thread(target=wait, name="soak-break", daemon=True).start()


if "SOAK_CLOCK" in os.environ:
    move_clock(os.environ["SOAK_CLOCK"])
if "SOAK_BREAK" in os.environ:
    break_engine(os.environ["SOAK_BREAK"])
