"""Totals that somebody else keeps, as Ray metrics, which every node exports to Prometheus."""

from collections.abc import Mapping, Sequence
from typing import cast

from ray.serve import metrics


class Total:
    """A counter that follows a total. To be made inside a replica.

    It is exported at 0, too: of a counter that begins at 1 Prometheus' `increase` does not see
    the first event. Ray's `inc` takes no 0, what lies below it does.

    Args:
        name: without `_total`, which Ray adds.
        labels: those beside Serve's own.
    """

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        # Ray's annotation allows one key only.
        self._counter = metrics.Counter(name, text, cast(tuple[str], tuple(labels)))
        self._shown: dict[tuple[str, ...], float] = {}

    def show(self, total: float, tags: Mapping[str, str] | None = None) -> None:
        """Shows a total, which only grows, as it is now. `tags`: a value for each label."""
        tags = dict(tags or {})
        place = tuple(tags.values())
        more = total - self._shown.get(place, 0.0)
        if more > 0:
            self._counter.inc(more, tags)
        elif place not in self._shown:
            self._counter._record(0.0, tags)
        self._shown[place] = max(total, self._shown.get(place, 0.0))


class Gauges:
    """One gauge with labels; what is not said any more is shown as 0.

    Args:
        labels: those beside Serve's own.
    """

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._gauge = metrics.Gauge(name, text, cast(tuple[str], tuple(labels)))
        self._labels = tuple(labels)
        self._shown: set[tuple[str, ...]] = set()

    def show(self, values: Mapping[tuple[str, ...], float]) -> None:
        """Shows all values as they are now, by the values of the labels."""
        self._shown |= values.keys()
        for place in self._shown:
            tags = dict(zip(self._labels, place, strict=True))
            self._gauge.set(values.get(place, 0.0), tags)
