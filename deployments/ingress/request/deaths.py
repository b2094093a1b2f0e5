"""Processes that die under a call: what is asked once more, and what is said in the end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from random import SystemRandom
from typing import TypeVar

from ray.exceptions import (
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.contracts.errors import EngineFault, QueueFull, TcdError, WentAway

FULL_PAUSE_S = (0.5, 30.0)  # what is made in the background and finds no room asks again after this
FAULT_PAUSE_S = 0.5  # for a replica whose engine broke to be out of Serve's rotation
WENT_AWAY = "the model's replica, or what it needed, went away; try again"
FAILURES = (RayError, RayServeException, EngineFault)  # what a handle call raises of itself
DEATHS = (RayActorError, ObjectLostError, WorkerCrashedError, EngineFault)
Answer = TypeVar("Answer")
log = logging.getLogger("ray.serve.tcd.service")


@contextmanager
def translated() -> Iterator[None]:
    """What a handle call raises, as one of this service's own errors where it is one."""
    try:
        yield
    except RayTaskError as error:
        # What a replica raised on purpose, without the traceback that its wrapper speaks.
        if isinstance(error.cause, TcdError):
            raise error.cause from error
        if not died(error):
            raise
        raise WentAway(WENT_AWAY) from error
    except BackPressureError as error:
        raise QueueFull("the model's queue is full") from error
    except (RayError, RayServeException) as error:
        raise WentAway(WENT_AWAY) from error


async def twice(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """What `ask` comes to; asked once more, from the start, if a process died under it."""
    try:
        return await ask()
    except FAILURES as error:
        if not died(error):
            raise
        await pause(error)
    return await ask()


async def pause(error: Exception) -> None:
    """Before asking once more for this error."""
    log.warning("asked once more, for: %r", error)
    if isinstance(error, EngineFault):
        await asyncio.sleep(FAULT_PAUSE_S)


async def wait_for_room(error: QueueFull) -> None:
    """Before asking once more for what found everything full, which is let go of meanwhile."""
    least, most = FULL_PAUSE_S
    pause_s = min(max(error.retry_after_ms / 1000, least), most)
    # Its frames hold what was made ready: hundreds of megabytes of maps, perhaps.
    error.__traceback__ = None
    await asyncio.sleep(pause_s * SystemRandom().uniform(0.8, 1.2))


def died(error: Exception) -> bool:
    """Whether a process died under a call: the one that was called, one that was making a map for
    it, or the owner of one; or an engine. Of what stood behind a call Serve speaks with the bare
    base of its errors."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, DEATHS) or type(cause) is RayServeException
