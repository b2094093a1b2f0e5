"""How many workers jobs want, as Serve's controller asks."""

from types import SimpleNamespace
from typing import Any

import pytest

from configs.app import ServiceArgs
from configs.jobs import JobsArgs
from deployments.jobs.autoscaling import OPEN_JOBS, ByOpenJobs
from graphs.service import build, job_worker


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        ({}, 2),  # nobody has told yet: as many as now
        ({OPEN_JOBS: {"a": 0.0}}, 0),
        ({OPEN_JOBS: {"a": 40.0, "b": 38.0}}, 5),  # each sees all of them
    ],
)
def test_by_open_jobs(seen: dict[str, Any], wanted: float) -> None:
    context: Any = SimpleNamespace(aggregated_metrics=seen, target_num_replicas=2)
    replicas, state = ByOpenJobs(at_once=8)(context)
    assert (replicas, state) == (wanted, {})


def test_a_worker_counts_as_many_as_it_does() -> None:
    """What the graph tells Serve is what the configuration says."""
    config = job_worker(3)._deployment_config.autoscaling_config
    assert config is not None
    assert config.policy.policy_kwargs == {"at_once": 3}
    assert ByOpenJobs(**config.policy.policy_kwargs)._at_once == 3
    for storage in ({"kind": "temporary"}, {"kind": "folder", "path": "out/jobs"}):
        args = ServiceArgs(jobs=JobsArgs.model_validate({"storage": storage, "at_once": 3}))
        assert build(args) is not None
