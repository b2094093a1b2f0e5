"""Python runs this at its start where this folder is on its path: the wall clock is moved by what
the file named by `SOAK_CLOCK` says, seconds as a double, in every process that reads the same file.
"""

import mmap
import os
import struct
import time


def move(path: str) -> None:
    """From now on `time.time` is off by what the file says."""
    with open(path, "r+b") as file:
        offset = mmap.mmap(file.fileno(), 8)
    right = time.time

    def moved() -> float:
        return right() + float(struct.unpack_from("d", offset)[0])

    time.__dict__["time"] = moved


if "SOAK_CLOCK" in os.environ:
    move(os.environ["SOAK_CLOCK"])
