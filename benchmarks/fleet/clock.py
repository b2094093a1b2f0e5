"""Virtual time: what is to happen, in order."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class Clock:
    """Runs actions at their times; those of the same time in the order in which they were set."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Sets an action for so many seconds from now."""
        heappush(self._events, (self.now + seconds, next(self._numbers), action))

    def step(self) -> bool:
        """Runs the next action; False if there is none."""
        if not self._events:
            return False
        self.now, _, action = heappop(self._events)
        action()
        return True
