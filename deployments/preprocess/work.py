"""What preprocessors have in common: figures of their work, and batches whose items fail alone."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

from ray.serve import metrics

from deployments.contracts.errors import GenerationFailed
from deployments.ending import end_process
from deployments.exported import Total

Item = TypeVar("Item")
Made = TypeVar("Made")

MAX_BATCH = 8
log = logging.getLogger("ray.serve.tcd.preprocess")
BATCH_SECONDS = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]


class Work:
    """Counts a preprocessor's work as Ray metrics, which every node exports to Prometheus.

    Attributes:
        made, failed: pictures so far.
    """

    def __init__(self) -> None:
        self._pictures = Total("tcd_preprocessor_pictures", "pictures preprocessed")
        self._failures = Total(
            "tcd_preprocessor_failures", "pictures that could not be preprocessed"
        )
        self.made = self.failed = 0
        self._count(made=0, failed=0)
        self._seconds = metrics.Histogram(
            "tcd_preprocessor_batch_seconds", "time of one batch of pictures", BATCH_SECONDS
        )

    @contextmanager
    def of(self, pictures: int) -> Iterator[None]:
        """A batch of so many, of which `counted` is told; all of one that raises have failed."""
        started = perf_counter()
        try:
            yield
        except Exception:
            self._count(made=0, failed=pictures)
            raise
        self._seconds.observe(perf_counter() - started)

    def counted(self, results: list[Made | GenerationFailed]) -> list[Made | GenerationFailed]:
        """The same, once it is counted what was made and what failed."""
        failed = sum(isinstance(one, GenerationFailed) for one in results)
        self._count(made=len(results) - failed, failed=failed)
        return results

    def _count(self, made: int, failed: int) -> None:
        self.made += made
        self.failed += failed
        self._pictures.show(self.made)
        self._failures.show(self.failed)


def one_fails_alone(
    work: Callable[[Sequence[Item]], Sequence[Made]], items: Sequence[Item]
) -> list[Made | GenerationFailed]:
    """What `work` makes of a batch. If it fails, whose fault it is shows when each is alone: those
    with which it fails again have a `GenerationFailed` in their place. Of a device that failed
    itself nobody can have anything any more: that ends this process."""
    try:
        return list(work(items))
    except Exception as error:
        from deployments.device import is_of_device  # torch: there by now, and not before

        if is_of_device(error):
            end_process(log, "the device failed; this replica ends", error)
        if len(items) == 1:
            log.warning("a picture could not be preprocessed", exc_info=error)
            return [GenerationFailed(f"the picture could not be preprocessed ({error})")]
    # The error is gone by now, and with it what the batch took of the device's memory.
    return [made for item in items for made in one_fails_alone(work, [item])]


def made(result: Made | GenerationFailed) -> Made:
    """One item of a batch. Raises its `GenerationFailed`."""
    if isinstance(result, GenerationFailed):
        raise result
    return result
