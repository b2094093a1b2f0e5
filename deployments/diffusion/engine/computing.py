"""Threads that compute for an engine."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Thread, get_native_id

import torch

BEHIND = 5  # steps of niceness


def computing(work: Callable[[], None], name: str, device: torch.device) -> Thread:
    """A thread for `work`, which computes on a device.

    On a CPU it goes behind those that bring it requests, of this process and of others: they need
    little, and a crowd that is not even refused in time keeps the answers of all waiting. (Linux
    gives threads a niceness of their own.)
    """

    def run() -> None:
        if device.type == "cpu" and sys.platform == "linux":
            nice = os.getpriority(os.PRIO_PROCESS, 0)
            with suppress(OSError):  # where it is not allowed
                os.setpriority(os.PRIO_PROCESS, get_native_id(), nice + BEHIND)
        work()

    return Thread(target=run, name=name, daemon=True)
