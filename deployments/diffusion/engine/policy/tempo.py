"""How long a UNet call will take, by those that were timed. No torch."""

from collections import deque
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from deployments.diffusion.engine.policy.batch import BatchKey, Measured

TIMES = 9  # of calls with as many rows, of which the median counts
FORGOTTEN_AFTER = 256  # calls of a size: what had not been timed since then may be tried again
SHORTEST_S = 1e-6  # that a call can have taken
SIZES = 256  # most sizes that are kept, those timed last
SMALL = 8  # rows that may share a call without having to pay; twice as many have to
GAIN = 0.95  # of the time for a row in a call of half as many, at most, is what pays


class Curve(NamedTuple):
    """What calls of a size are thought to take, by their rows.

    Attributes:
        known: rows and seconds of calls that were timed, fewest first; empty: nothing is known.
        larger: times the pixels that those had.
    """

    known: Sequence[tuple[int, float]] = ()
    larger: float = 1.0

    def rows_within(self, seconds: float) -> float:
        """UNet rows, 0 or more, of the largest call that is thought to take at most so long;
        infinite while nothing is known."""
        if seconds == inf or not self.known:
            return inf
        seconds /= self.larger
        within = [at for at in self.known if at[1] <= seconds]
        above = [at for at in self.known if at[1] > seconds]
        if not within:
            rows, took = above[0]
            return rows * seconds // took  # a call costs something itself: if anything, too many
        rows, took = within[-1]
        # What a row more takes: what it took before, else a quarter of an average row. Too little
        # is seen in two calls, too much never. Beyond what would be in time even if all rows took
        # as long, at most twice as many are tried at once.
        more = took / rows / 4
        if len(within) > 1:
            fewer, less = within[-2]
            more = max((took - less) / (rows - fewer), more)
        tried = max(rows * seconds // took, min(rows + (seconds - took) // more, 2 * rows))
        return min([tried, *(count - 1 for count, _ in above if count > rows)])

    def seconds_of(self, rows: float) -> float:
        """What a call of so many rows is thought to take, in proportion to the one that is known
        whose rows are nearest; 0 while nothing is known."""
        if not self.known:
            return 0.0
        count, took = min(self.known, key=lambda at: abs(at[0] - rows))
        return took * rows / count * self.larger

    def row_s(self, rows: float) -> float:
        """What a row takes in such a call."""
        return self.seconds_of(rows) / rows


class Tempo:
    """What calls of each size take: how many rows are in time, and how many are worth it."""

    def __init__(self) -> None:
        self._sizes: dict[BatchKey, _Size] = {}  # the one timed last at the end

    def measure(self, call: Measured) -> None:
        """A call was timed."""
        size = self._sizes.pop(call.key, None) or _Size()
        size.measure(call.unet_rows, call.seconds)
        self._sizes[call.key] = size
        if len(self._sizes) > SIZES:
            del self._sizes[next(iter(self._sizes))]

    def curve(self, key: BatchKey) -> Curve:
        """What calls of a size take: by its own that were timed, else by those of the size timed
        last, as if time were in proportion to pixels."""
        if self.knows(key):
            return Curve(self._sizes[key].known)
        for other, size in reversed(self._sizes.items()):
            if size.known:
                return Curve(size.known, key.pixels / other.pixels)
        return Curve()

    def seconds_of(self, key: BatchKey, rows: float) -> float:
        """What a call of so many rows of a size is thought to take; 0 while nothing is known."""
        return self.curve(key).seconds_of(rows)

    def knows(self, key: BatchKey) -> bool:
        """Whether calls of this very size were timed."""
        size = self._sizes.get(key)
        return size is not None and bool(size.known)

    def row_s(self, key: BatchKey, full: float) -> float:
        """What a UNet row of a size takes in calls of `full` rows, by the calls of at least half as
        many that had nearly so many; 0: none was timed. Smaller ones say nothing of those."""
        size = self._sizes.get(key)
        timed = () if size is None else size.known
        near = [(abs(rows - full), took / rows) for rows, took in timed if 2 * rows >= full]
        return min(near, default=(0, 0.0))[1]

    def rows_worth(self, key: BatchKey) -> int:
        """UNet rows beyond which a call of a size does not do more a second: further rows would
        only keep each other waiting. Twice as many are tried as have been seen to pay."""
        size = self._sizes.get(key)
        return SMALL if size is None else size.rows_worth()


class _Size:
    """What calls of one size took, by their rows.

    Only counts of rows that were timed twice are known: a first call may compile, tune and allocate
    on a GPU. Of two times the shorter counts, of several the median: one that was held up is
    no measure.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._times: dict[int, deque[float]] = {}
        self._last: dict[int, int] = {}  # call with so many rows
        self.known: list[tuple[int, float]] = []  # rows and seconds, fewest first

    def measure(self, rows: int, seconds: float) -> None:
        """A call of so many rows took so long."""
        self._calls += 1
        self._times.setdefault(rows, deque(maxlen=TIMES)).append(max(seconds, SHORTEST_S))
        self._last[rows] = self._calls
        for count, last in list(self._last.items()):
            if last < self._calls - FORGOTTEN_AFTER:
                del self._times[count], self._last[count]
        medians = (
            (count, sorted(t)[(len(t) - 1) // 2], len(t)) for count, t in self._times.items()
        )
        self.known = sorted((count, median) for count, median, times in medians if times > 1)

    def rows_worth(self) -> int:
        """Rows of the best call among those that were timed, or of a larger one to be tried."""
        least = SMALL
        while timed := self._timed(least, 2 * least):
            larger = self._timed(2 * least, 4 * least)
            if larger:
                seconds, rows = larger[0]
                halves = self._timed(SMALL, rows // 2 + 1)
                if halves and seconds > GAIN * halves[0][0]:
                    return timed[0][1]
            least *= 2
        return least

    def _timed(self, least: int, below: int) -> list[tuple[float, int]]:
        """Seconds a row, and rows, of the calls with so many; the fastest first."""
        return sorted((took / rows, rows) for rows, took in self.known if least <= rows < below)
