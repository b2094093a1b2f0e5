"""Which nodes a deployment may run on; what is asked there is in `tests.graphs.test_cluster`."""

from typing import Any

import pytest
from ray.serve.schema import ServeApplicationSchema

from graphs.check.accepted import accepted
from graphs.check.nodes import Node, _environment, _options

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


def test_what_deployments_ask_of_a_node() -> None:
    """The file's options stand in place of the graph's, and Serve adds a CPU."""
    model = {"name": "one", "family": "sd15", "checkpoint": "a/b", "tcd_lora": "c/d"}
    for given, wanted in (
        ({}, {"num_cpus": 1}),
        ({"ray_actor_options": {"num_gpus": 1}}, {"num_cpus": 1, "num_gpus": 1}),
        ({"ray_actor_options": {"num_cpus": 0}}, {"num_cpus": 0}),
    ):
        written = {
            "name": "model-one",
            "route_prefix": None,
            "import_path": "graphs.model:build",
            "args": model,
            "deployments": [{"name": "Diffusion", **given}],
        }
        read = ServeApplicationSchema.model_validate(written)
        assert _options(accepted(written), read.deployments) == {"Diffusion": wanted}
    written = {"name": "tcd", "import_path": "graphs.service:build", "args": {}}
    options = _options(accepted(written), [])
    assert options["Ingress"] == {"num_cpus": 0.1}
    assert options["Canny"] == {"num_cpus": 1}


def test_an_environment_of_a_deployment_lies_over_its_applications() -> None:
    application = {"working_dir": "s3://a/b.zip", "env_vars": {"A": "1", "B": "1"}}
    assert _environment(application, None) == application
    assert _environment(application, {"env_vars": {"B": "2"}, "pip": ["x"]}) == {
        "working_dir": "s3://a/b.zip",
        "env_vars": {"A": "1", "B": "2"},
        "pip": ["x"],
    }
    assert _environment({}, {}) == {}
