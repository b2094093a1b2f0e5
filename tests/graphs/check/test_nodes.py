"""Which nodes a deployment may run on; what is asked there is in `tests.graphs.test_cluster`."""

from typing import Any

import pytest

from graphs.check.nodes import Node

GPU = Node(
    "a",
    "10.0.0.1",
    {"CPU": 8, "GPU": 2, "memory": 1e9, "accelerator_type:L4": 1, "disk": 1},
    {"kind": "gpu", "zone": "b"},
)


@pytest.mark.parametrize(
    ("options", "takes"),
    [
        ({}, True),
        ({"num_cpus": 8, "num_gpus": 2}, True),
        ({"num_cpus": 9}, False),
        ({"num_gpus": 2.5}, False),
        ({"memory": 2e9}, False),
        ({"resources": {"disk": 0.5}}, True),
        ({"resources": {"tape": 0.5}}, False),
        ({"accelerator_type": "L4"}, True),
        ({"accelerator_type": "H100"}, False),
        ({"label_selector": {"kind": "gpu"}}, True),
        ({"label_selector": {"kind": "cpu"}}, False),
        ({"label_selector": {"kind": "!cpu", "zone": "in(a, b)"}}, True),
        ({"label_selector": {"zone": "!in(a,b)"}}, False),
        ({"label_selector": {"rack": "1"}}, False),
        ({"label_selector": {"rack": "!1"}}, True),
    ],
)
def test_what_a_node_takes(options: dict[str, Any], takes: bool) -> None:
    assert GPU.takes(options) is takes
