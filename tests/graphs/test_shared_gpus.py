"""`SharedGpus` in Serve's own controller, by what it wants and what runs: two models that together
want more GPUs than there are.

The cluster has a process of its own (`tests.graphs.shared_gpus`).
"""

from pathlib import Path
from typing import Any

import pytest

from tests.graphs.nodes import seen_by
from tests.graphs.shared_gpus import FIRST, FLOORS, GPUS, SECOND
from tests.graphs.test_four_nodes import all_answered

TIMEOUT_S = 540
pytestmark = [pytest.mark.timeout(600), pytest.mark.deep]


@pytest.fixture(scope="module")
def seen(demo_models: Path) -> Any:
    """One model that wants all GPUs, another that comes from zero, and what is left in the end."""
    return seen_by("tests.graphs.shared_gpus", timeout_s=TIMEOUT_S)


def test_a_model_has_all_gpus_while_nobody_else_wants_one(seen: Any) -> None:
    assert {FIRST: GPUS} in [sample["run"] for sample in seen["samples"]]


def test_both_are_served_when_both_want_them(seen: Any) -> None:
    assert seen["both"].keys() == {FIRST, SECOND}
    assert sum(seen["both"].values()) <= GPUS


def test_an_idle_model_keeps_its_floor_and_the_other_has_the_rest(seen: Any) -> None:
    assert {FIRST: FLOORS[FIRST], SECOND: GPUS - FLOORS[FIRST]} in [
        sample["run"] for sample in seen["samples"]
    ]


def test_never_more_are_wanted_than_there_are(seen: Any) -> None:
    """But for the first replica of a model that wakes, which Serve starts by itself."""
    for sample in seen["samples"]:
        wakes = sample["wanted"][SECOND] == 1 and SECOND not in sample["run"]
        assert sum(sample["wanted"].values()) <= GPUS + wakes, sample


def test_every_request_is_answered_with_its_picture(seen: Any) -> None:
    assert len(seen["requests"]) > 4 * GPUS
    all_answered(seen["requests"])
