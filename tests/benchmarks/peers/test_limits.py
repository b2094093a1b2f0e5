"""The peers' benchmark: several workers of a limit share a load."""

import pytest

from benchmarks.peers.limits import shares, together
from benchmarks.peers.load import Load, Taken
from benchmarks.peers.traffic import requests


def test_a_load_is_shared_out_whole() -> None:
    parts = shares(Load("mixed", 5, 2.0, 7, seed=3), 2)
    assert [part.clients for part in parts] == [2, 3]
    assert sum(part.least for part in parts) == 7
    assert {part.seconds for part in parts} == {2.0}
    first, second = (next(requests(part.kind, part.seed)) for part in parts)
    assert first != second


def test_workers_together_do_what_each_does() -> None:
    parts = [Taken([0.1, 0.2], 2.0, 20, [1.0]), Taken([0.3], 4.0, 20, [3.0])]
    both = together(parts)
    assert both.window_images / both.window_s == pytest.approx(10 + 5)
    assert both.latencies_s == [0.1, 0.2, 0.3]
    assert both.bursts_s == [1.0, 3.0]
