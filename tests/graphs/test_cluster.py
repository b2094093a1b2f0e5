"""The production config on a cluster of two nodes: who runs where, and a model that is added.

The cluster has a process of its own (`tests.graphs.two_nodes`): a process can be connected to one
cluster only.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.graphs.nodes import seen_by

TIMEOUT_S = 540
pytestmark = [pytest.mark.timeout(600), pytest.mark.deep]


@pytest.fixture(scope="module")
def seen(demo_models: Path) -> Any:
    """What the program saw."""
    return seen_by("tests.graphs.two_nodes", timeout_s=TIMEOUT_S)


def test_diffusion_runs_on_gpus_and_the_rest_does_not(seen: dict[str, Any]) -> None:
    nodes = seen["nodes"]
    assert sorted(nodes.values()) == ["cpu", "gpu"]
    for replica in seen["after"]:
        expected = "gpu" if replica["deployment"] == "Diffusion" else "cpu"
        assert nodes[replica["node"]] == expected, replica
    ran = {replica["deployment"] for replica in seen["after"]}
    service = {"Ingress", "Directory", "MapStore", "JobWorker", "JobStore", "Canny"}
    assert ran == {*service, "Diffusion"}


def test_no_two_replicas_share_a_gpu(seen: dict[str, Any]) -> None:
    gpus = [r["gpus"] for r in seen["after"] if r["deployment"] == "Diffusion"]
    assert sorted(gpus) == ["0", "1"]
    assert {r["gpus"] for r in seen["after"] if r["deployment"] != "Diffusion"} == {""}


def test_a_model_is_added_while_another_serves(seen: dict[str, Any]) -> None:
    # Each request had a canny map made on one node and used on the other.
    assert len(seen["answers"]) > 3
    assert set(seen["answers"]) == {200}
    assert seen["added"] == 200
    before, after = (
        {(r["application"], r["pid"]) for r in seen[when]} for when in ("before", "after")
    )
    assert before <= after
    assert {application for application, _ in after - before} == {"model-sd21"}


def test_what_nodes_lack_is_said_before_a_deploy(seen: dict[str, Any]) -> None:
    """Each file is looked at where its deployment may run, and nowhere else."""
    right, wrong = seen["checked"]
    # The nodes' GPUs are logical ones, and so the models' device is the CPU.
    (advice,) = right
    assert advice.startswith("advice: model-sd15.Diffusion.ray_actor_options.num_gpus: 1, ")
    for begins in (
        "model-sd15.args.tcd_lora: '/nowhere/tcd' does not exist",
        "tcd.args.api_keys_env: TCD_NOT_SET is not set here",
    ):
        (line,) = (line for line in wrong if line.startswith(begins))
        assert re.search(r" \(node [\d.]+\)$", line), line
    (line,) = (line for line in wrong if "model-sd21." in line)
    assert line.startswith("unknown: model-sd21.Diffusion: no node that is there now takes {"), line
    assert "'accelerator_type': 'H100'" in line
    assert len(wrong) == 3
