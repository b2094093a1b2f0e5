"""A job that one replica has no room for is asked of another."""

import asyncio
from dataclasses import replace

from deployments.contracts.errors import QueueFull
from deployments.contracts.jobs import ImageJob

MOST_ASKED = 3  # replicas, before a client hears that there is no room


class Elsewhere:
    """The replicas that a job may still be asked of. Which one it is the router of the model's
    handle decides: it knows by the job's id whom that was sent to.

    Args:
        replicas: of the model.
    """

    def __init__(self, job: ImageJob, replicas: int) -> None:
        self._job = job
        self._left = min(replicas, MOST_ASKED) - 1
        self._said: list[tuple[str, int, int]] = []  # their `args`: frames of errors hold this
        self._ends = None if job.timeout_s is None else _now() + job.timeout_s

    def after(self, refused: QueueFull) -> ImageJob:
        """The job for the next replica, with what is left of its time. If none is left to ask, or
        no time, raises what that replica said which expects room first."""
        refused.__traceback__ = None  # its frames hold what was made ready, see `wait_for_room`
        self._said.append(refused.args)
        left_s = None if self._ends is None else self._ends - _now()
        if self._left < 1 or (left_s is not None and left_s <= 0):
            message, wait_ms, _ = min(self._said, key=lambda said: said[1])
            full_ms = min(full_ms for _, _, full_ms in self._said)
            raise QueueFull(message, wait_ms, full_ms) from None
        self._left -= 1
        return replace(self._job, timeout_s=left_s, refused_elsewhere=True)


def _now() -> float:
    return asyncio.get_running_loop().time()
