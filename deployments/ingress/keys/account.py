"""A key at one ingress: what it has of its limits, and who waits for the rest."""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from configs.keys import KeyEntry
from deployments.contracts.errors import Forbidden, RateLimited
from deployments.contracts.usage import KeyReport, KeyTotals
from deployments.ingress.keys.allowance import Allowance

SLACK_S = 2.0  # by how much longer a request of another ingress must have waited to go first
SILENT_S = 10.0  # what was heard of other ingresses counts so long
LEAST_RETRY_S, MOST_RETRY_S = 0.1, 60.0
FIRST_GUESS_S, SMOOTHING = 1.0, 0.1  # of how long a place is held


@dataclass(frozen=True)
class Elsewhere:
    """A key at all other ingresses together.

    Attributes:
        oldest_s: the longest wait there, seconds.
        heard: when this was so, on the clock of the account.
    """

    running: int = 0
    waiting: int = 0
    oldest_s: float = 0.0
    heard: float = -math.inf


@dataclass(eq=False)
class Place:
    """Room for the images of one request, had or waited for.

    Attributes:
        since: when it was asked for; `begun`: when it was given.
    """

    images: int
    since: float
    begun: float | None = None
    given: "asyncio.Future[None]" = field(default_factory=lambda: _future())


class Account:
    """A key at this ingress.

    Args:
        limits: its entry as it stands now; `None`: it has no limits.
    """

    def __init__(
        self, name: str, limits: Callable[[], KeyEntry | None], clock: Callable[[], float]
    ) -> None:
        self.name = name
        self.totals = KeyTotals()
        self._limits = limits
        self._clock = clock
        self._elsewhere = Elsewhere()
        self._running = self._waiting = self._spent = 0
        self._queue: deque[Place] = deque()
        self._allowance = Allowance(clock)
        self._held_s = FIRST_GUESS_S

    def report(self) -> KeyReport:
        """How it stands here."""
        oldest_s = self._clock() - self._queue[0].since if self._queue else 0.0
        return KeyReport(self.totals, self._running, self._waiting, oldest_s, self._spent)

    def hear(self, elsewhere: Elsewhere, spent: int) -> None:
        """How it stands at the others, and what work they began since the last time."""
        self._elsewhere = elsewhere
        self._take(spent)
        self.advance()

    def work_left(self) -> int | None:
        """UNet pixel-steps that may be asked for now; `None`: no limit."""
        limits = self._limits()
        if limits is None or limits.work_per_minute is None:
            return None
        return max(0, int(self._allowance.left(limits.work_per_minute)))

    def may_ask(self, model: str) -> bool:
        """Whether the key is for this model."""
        limits = self._limits()
        return limits is None or limits.may_ask(model)

    def check_asked(self, model: str, priority: int) -> None:
        """Raises `Forbidden` if the key may not ask this model, or not at this priority."""
        limits = self._limits()
        if limits is None:
            return
        if not limits.may_ask(model):
            allowed = ", ".join(limits.models or ()) or "none"
            raise Forbidden(f"key {self.name!r} may not ask model {model!r}; it may ask: {allowed}")
        if limits.max_priority is not None and priority > limits.max_priority:
            raise Forbidden(
                f"priority is {priority}; {limits.max_priority} at most with key {self.name!r}"
            )

    def check_work(self) -> None:
        """Raises `RateLimited` while no work is left."""
        limits = self._limits()
        if limits is None or limits.work_per_minute is None:
            return
        if self._allowance.left(limits.work_per_minute) <= 0:
            raise RateLimited(
                f"key {self.name!r} has used up its {limits.work_per_minute} UNet pixel-steps a "
                "minute",
                _retry_ms(self._allowance.wait_s(limits.work_per_minute)),
            )

    def check_size(self, images: int) -> None:
        """Raises `Forbidden` if the key may never have so many images at a time."""
        limits = self._limits()
        if limits is not None and limits.running is not None and images > limits.running:
            raise Forbidden(
                f"n is {images}; key {self.name!r} may have {limits.running} images at a time"
            )

    def check_places(self, images: int) -> None:
        """Raises what a request for so many images would be refused with now: `Forbidden` if the
        key may never have as many, `RateLimited` if too many wait."""
        limits = self._limits()
        self.check_size(images)
        if limits is None or limits.running is None:
            return
        if limits.waiting is None or (not self._queue and self._has_place(images, self._clock())):
            return
        waiting = self._waiting + self._others().waiting
        if waiting + images > limits.waiting:
            excess = waiting + images - limits.waiting
            raise RateLimited(
                f"key {self.name!r} may have {limits.running} images in the service and "
                f"{limits.waiting} waiting; {waiting} wait now",
                _retry_ms(excess * self._held_s / limits.running),
            )

    def enter(self, images: int) -> Place:
        """A place, which is given at once or later. Raises as `check_places`."""
        self.check_places(images)
        place = Place(images, self._clock())
        self._queue.append(place)
        self._waiting += images
        self.advance()
        return place

    def leave(self, place: Place) -> None:
        """Takes a place back, or ends the wait for it."""
        if place.begun is not None:
            self._running -= place.images
            self._held_s += SMOOTHING * (self._clock() - place.begun - self._held_s)
        else:
            self._queue.remove(place)
            self._waiting -= place.images
        self.advance()

    def advance(self) -> None:
        """Gives places to those that wait, in their order, as long as there are any."""
        while self._queue and self._has_place(self._queue[0].images, self._queue[0].since):
            place = self._queue.popleft()
            self._waiting -= place.images
            self._running += place.images
            place.begun = self._clock()
            if not place.given.done():
                place.given.set_result(None)

    def spend(self, work: int) -> None:
        """Counts work that was begun here; below 0, that was not done after all."""
        self._spent += work
        self._take(work)

    def _take(self, work: int) -> None:
        limits = self._limits()
        if limits is not None and limits.work_per_minute is not None:
            self._allowance.left(limits.work_per_minute)  # what flowed back until now comes first
            self._allowance.spend(work)

    def _has_place(self, images: int, since: float) -> bool:
        limits = self._limits()
        if limits is None or limits.running is None:
            return True
        others, now = self._others(), self._clock()
        running = self._running + others.running
        # Alone it may go in any case: its limit may have become smaller while it waited.
        if running and running + images > limits.running:
            return False
        # Between ingresses the oldest goes first, or one that always has work would keep a
        # place for ever. The slack has each go on by itself while all wait about as long.
        return not others.waiting or others.oldest_s + (now - others.heard) <= (
            now - since + SLACK_S
        )

    def _others(self) -> Elsewhere:
        heard = self._elsewhere
        return heard if self._clock() - heard.heard <= SILENT_S else Elsewhere(heard=self._clock())


def _future() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()


def _retry_ms(seconds: float) -> int:
    return math.ceil(1000 * min(max(seconds, LEAST_RETRY_S), MOST_RETRY_S))
