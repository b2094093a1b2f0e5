"""Requests that are being drawn here: how far they are, and how they are stopped.

Each caller has their own. Callers without keys are one.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from deployments.contracts.errors import Cancelled
from deployments.contracts.jobs import FailedImage, FinishedImage, Progress, StreamEvent


@dataclass(eq=False)
class Run:
    """A request that is being drawn.

    Attributes:
        images: how many it asks for.
        steps: of each image that has begun, those that are done, and all of them.
        finished, failed: what has become of the others.
    """

    images: int
    began: float = field(default_factory=time.monotonic)
    steps: dict[int, tuple[int, int]] = field(default_factory=dict)
    finished: list[FinishedImage] = field(default_factory=list)
    failed: list[FailedImage] = field(default_factory=list)
    interrupted: bool = False
    _limit: asyncio.Timeout | None = None

    @property
    def part(self) -> float:
        """How much of it is done, from 0 to 1."""
        ended = {one.image_index for one in self.finished}
        ended |= {one.image_index for one in self.failed}
        under_way = (at / of for index, (at, of) in self.steps.items() if index not in ended)
        return (len(ended) + sum(under_way)) / self.images

    async def draw(self, events: AsyncGenerator[StreamEvent]) -> None:
        """Follows a request's events to their end, or until it is interrupted. Raises what they
        raise, and `Cancelled` if no image was done when it was interrupted."""
        try:
            async with asyncio.timeout(None) as self._limit, aclosing(events):
                async for event in events:
                    match event:
                        case Progress():
                            self.steps[event.image_index] = (event.step, event.steps)
                        case FinishedImage():
                            self.finished.append(event)
                        case FailedImage():
                            self.failed.append(event)
        except TimeoutError:
            if not self.interrupted:
                raise
            if not self.finished:
                raise Cancelled("interrupted before an image was done") from None
        finally:
            self._limit = None

    def interrupt(self) -> None:
        """Stops it at its next step."""
        self.interrupted = True
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())


class Runs:
    """Of all callers of this process."""

    def __init__(self) -> None:
        self._running: dict[str, list[Run]] = {}

    @contextmanager
    def begun(self, caller: str, images: int) -> Iterator[Run]:
        """A caller's request, for as long as it is drawn."""
        run = Run(images)
        self._running.setdefault(caller, []).append(run)
        try:
            yield run
        finally:
            self._running[caller].remove(run)
            if not self._running[caller]:
                del self._running[caller]

    def of(self, caller: str) -> list[Run]:
        """A caller's requests, the oldest first."""
        return list(self._running.get(caller, ()))
