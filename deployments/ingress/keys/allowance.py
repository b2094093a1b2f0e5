"""Work by the minute: what a key may ask for, and when it may again."""

from collections.abc import Callable

MINUTE_S = 60.0


class Allowance:
    """A minute's work, which flows back evenly as it is spent.

    A request is taken as long as anything is left, whatever it costs: one that is larger than
    the whole is not shut out, and what it took too much must flow back before the next.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen = clock()
        self._taken = 0.0  # of a full minute's work; may be more than that

    def spend(self, work: float) -> None:
        """Takes `work`; gives it back if it is negative."""
        self._taken = max(0.0, self._taken + work)

    def left(self, per_minute: int) -> float:
        """How much may be asked for now; negative where the last request took too much."""
        now = self._clock()
        self._taken = max(0.0, self._taken - per_minute * (now - self._seen) / MINUTE_S)
        self._seen = now
        return per_minute - self._taken

    def wait_s(self, per_minute: int) -> float:
        """Seconds until something is left again."""
        return max(0.0, -self.left(per_minute)) * MINUTE_S / per_minute
