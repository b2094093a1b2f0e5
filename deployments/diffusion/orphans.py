"""Jobs whose callers have died: nobody waits for them, and nobody else gives them up.

Ray does not tell an actor that the process which called it is gone.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray.serve._private.constants import SERVE_NAMESPACE

from deployments.contracts.jobs import ImageJob

LOOK_S = 5.0
log = logging.getLogger("ray.serve")


def lives(replica: str) -> bool:
    """Whether a replica of Serve is there, by its full name; also if nobody can say."""
    try:
        ray.get_actor(replica, namespace=SERVE_NAMESPACE)
    except ValueError:
        return False
    except Exception as error:  # the cluster's head is away, and may come back
        log.warning("nobody can say whether %s lives: %r", replica, error)
    return True


class Orphans:
    """Cancels jobs soon after their callers have died.

    Args:
        cancel: a job, by its id.
        lives: whether a caller does. It is asked on a thread.
        look_s: between two looks, while there are jobs.
    """

    def __init__(
        self,
        cancel: Callable[[str], None],
        lives: Callable[[str], bool] = lives,
        look_s: float = LOOK_S,
    ) -> None:
        self._cancel = cancel
        self._lives = lives
        self._look_s = look_s
        self._callers: dict[str, str] = {}  # of jobs, by their ids
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, job: ImageJob) -> Iterator[None]:
        """While its call is under way. To be entered on the event loop."""
        if job.asked_by is None:
            yield
            return
        self._callers[job.job_id] = job.asked_by
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._callers.pop(job.job_id, None)

    async def _look(self) -> None:
        while self._callers:
            await asyncio.sleep(self._look_s)
            for caller in set(self._callers.values()):
                if not await asyncio.to_thread(self._lives, caller):
                    self._give_up(caller)

    def _give_up(self, caller: str) -> None:
        for job_id, its in list(self._callers.items()):
            if its == caller:
                log.warning("job %s: its caller has died: %s", job_id, caller)
                self._cancel(job_id)
