"""The guide's config on four nodes, by what Ray says of nodes and actors: what runs where, models
that come from zero and go back, and nodes that are lost under load.

The cluster has a process of its own (`tests.graphs.four_nodes`).
"""

from pathlib import Path
from typing import Any

import pytest

from tests.graphs.four_nodes import ASLEEP, AWAKE, GROWING, JOBS, MOST
from tests.graphs.guide import deployments, guide
from tests.graphs.nodes import LABEL, NAME, seen_by

TIMEOUT_S = 570
pytestmark = [pytest.mark.timeout(600), pytest.mark.deep]
SERVICE = {name for name in deployments(guide()) if name.startswith("tcd/")} - {"tcd/JobStore"}


@pytest.fixture(scope="module")
def seen(demo_models: Path) -> Any:
    """Two CPU nodes and two GPU nodes, one of which is lost in the end."""
    scenes = ("placed", "grown", "gpu-lost")
    return seen_by("tests.graphs.four_nodes", "two-and-two", *scenes, timeout_s=TIMEOUT_S)


@pytest.fixture(scope="module")
def seen_at_length(demo_models: Path) -> Any:
    """More models than GPUs, and a CPU node that is lost."""
    scenes = ("woken", "cpu-lost")
    return seen_by("tests.graphs.four_nodes", "bare-head", *scenes, timeout_s=TIMEOUT_S)


def test_every_deployment_is_on_the_nodes_it_asks_for(seen: Any) -> None:
    asked = {
        name: deployment["ray_actor_options"] for name, deployment in deployments(guide()).items()
    }
    placed = seen["placed"]
    for replica in placed:
        options = asked[f"{replica['application']}/{replica['deployment']}"]
        labels = seen["nodes"][replica["node"]]
        assert labels | options["label_selector"] == labels, replica
        gpus = [gpu for gpu in replica["gpus"].split(",") if gpu]
        assert len(gpus) == options.get("num_gpus", 0), replica
    ran = {f"{replica['application']}/{replica['deployment']}" for replica in placed}
    assert ran == {*SERVICE, f"model-{AWAKE}/Diffusion"}
    ingresses = [r for r in placed if r["deployment"] == "Ingress"]
    assert len({r["node"] for r in ingresses}) == len(ingresses) == 2


def test_a_model_comes_from_zero_and_goes_back(seen: Any) -> None:
    grown = seen["grown"]
    assert grown["before"] == []
    assert len(grown["most"]) == MOST
    assert {seen["nodes"][node][LABEL] for node in grown["most"]} == {"gpu"}
    assert len(grown["requests"]) > 2 * MOST
    all_answered(grown["requests"])
    assert grown["left"] == []


def test_models_at_zero_stay_there_whatever_is_asked_of_them(seen: Any) -> None:
    assert {seen["ever"][model] for model in ASLEEP} == {0}
    assert seen["ever"][GROWING] >= MOST
    looks = {(path, status) for path, status in seen["grown"]["looks"]}
    assert {("v1/models", 200), ("metrics", 200), ("v1/tokenize", 503), ("tcd models", 0)} <= looks
    assert (f"readyz?models={','.join(ASLEEP)}", 200) in looks  # they could answer


def test_a_gpu_node_that_is_lost_under_load_costs_no_request(seen: Any) -> None:
    lost = seen["gpu-lost"]
    assert [r["application"] for r in lost["held"]] == [f"model-{AWAKE}"]
    assert in_hand(lost)
    all_answered(lost["requests"])
    all_done_once(lost["jobs"])


def test_more_models_than_gpus_take_turns(seen_at_length: Any) -> None:
    seen = seen_at_length
    all_answered(seen["woken"]["requests"])
    for model, nodes in seen["woken"]["places"].items():
        assert nodes, model
        assert {seen["nodes"][node][LABEL] for node in nodes} == {"gpu"}


def test_a_cpu_node_that_is_lost_costs_what_its_ingress_had_in_hand(seen_at_length: Any) -> None:
    lost = seen_at_length["cpu-lost"]
    assert {labels[NAME] for labels in seen_at_length["nodes"].values()} > {"head", "cpu-2"}
    held = {r["deployment"] for r in lost["held"]}
    assert "Ingress" in held
    assert in_hand(lost)
    for entry in lost["requests"]:
        ending = entry["ending"]
        if ending["outcome"] == "answered":
            continue
        assert entry["asked_at"] < lost["noticed_at"], entry
        assert entry["kind"].startswith("stream") or ending["shape"].startswith("503"), entry
    all_done_once(lost["jobs"])


def all_answered(requests: list[Any]) -> None:
    """Each, with the picture that the same request had before."""
    assert [entry for entry in requests if entry["ending"]["outcome"] != "answered"] == []


def all_done_once(jobs: Any) -> None:
    """Those that were accepted, and there are no others."""
    assert len(jobs["wrong"]) == 2 * JOBS
    assert set(jobs["wrong"].values()) == {None}
    assert sorted(jobs["listed"]) == sorted(jobs["wrong"])


def in_hand(lost: Any) -> list[Any]:
    """What had been asked and not been answered when the node was lost."""
    at = lost["lost_at"]
    return [entry for entry in lost["requests"] if entry["asked_at"] < at < entry["ended_at"]]
