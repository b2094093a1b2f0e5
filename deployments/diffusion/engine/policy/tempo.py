"""How long a UNet call will take, by those that were timed. No torch."""

from deployments.diffusion.engine.policy.batch import BatchKey, Measured

NEWEST = 1 / 16  # weight of the newest call in the averages of its size
PRIOR = 0.5  # rows squared: how firmly time is held to be in proportion to rows, until seen
SIZES = 256  # most sizes that are kept, those timed last


class Tempo:
    """What calls of each size take. `limits.max_step_ms` is kept by it."""

    def __init__(self) -> None:
        self._sizes: dict[BatchKey, _Size] = {}  # the one timed last at the end

    def measure(self, call: Measured) -> None:
        """A call was timed."""
        size = self._sizes.pop(call.key, None) or _Size()
        size.measure(call.unet_rows, call.seconds)
        self._sizes[call.key] = size
        if len(self._sizes) > SIZES:
            del self._sizes[next(iter(self._sizes))]

    def rows_within(self, key: BatchKey, seconds: float) -> int | None:
        """UNet rows of the largest call of a size that takes at most so long, 0 if none does.
        Before any of the size was timed: by the size timed last, as if time were in proportion
        to pixels; `None` before any was."""
        if (size := self._sizes.get(key)) is not None:
            return size.rows_within(seconds)
        if not self._sizes:
            return None
        other, size = next(reversed(self._sizes.items()))
        return size.rows_within(seconds * other.pixels / key.pixels)


class _Size:
    """Seconds of a call over its rows: a straight line through moving averages.

    The first call with so many rows is not counted: on a GPU it compiles, tunes and allocates.
    The very first is, until there is another.
    """

    def __init__(self) -> None:
        self._counts: set[int] = set()  # of rows, that were timed
        self._known = False  # whether by more than first calls
        self._rows = self._seconds = self._variance = self._covariance = 0.0

    def measure(self, rows: int, seconds: float) -> None:
        """A call of so many rows took so long."""
        first = rows not in self._counts
        self._counts.add(rows)
        if not self._known:
            self._rows, self._seconds = rows, seconds
            self._known = not first
        elif not first:
            more_rows, more_seconds = rows - self._rows, seconds - self._seconds
            self._rows += NEWEST * more_rows
            self._seconds += NEWEST * more_seconds
            self._variance += NEWEST * ((1 - NEWEST) * more_rows**2 - self._variance)
            self._covariance += NEWEST * (
                (1 - NEWEST) * more_rows * more_seconds - self._covariance
            )

    def rows_within(self, seconds: float) -> int:
        """Rows of the largest call that takes at most so long."""
        each = self._seconds / self._rows
        slope = (self._covariance + PRIOR * each) / (self._variance + PRIOR)
        slope = min(max(slope, each / 8), each)  # what a row more takes: something, at most `each`
        return max(0, int(self._rows + (seconds - self._seconds) / slope))
