"""What preprocessors count of their work."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from ray.serve import metrics

MAX_BATCH = 8
BATCH_SECONDS = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]


class Work:
    """Counts a preprocessor's work as Ray metrics, which every node exports to Prometheus."""

    def __init__(self) -> None:
        self._pictures = metrics.Counter("tcd_preprocessor_pictures", "pictures preprocessed")
        self._seconds = metrics.Histogram(
            "tcd_preprocessor_batch_seconds", "time of one batch of pictures", BATCH_SECONDS
        )

    @contextmanager
    def of(self, pictures: int) -> Iterator[None]:
        """A batch of so many; one that fails is not counted."""
        started = perf_counter()
        yield
        self._pictures.inc(pictures)
        self._seconds.observe(perf_counter() - started)
