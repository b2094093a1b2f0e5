"""What one look at Serve says of an application."""

from dataclasses import replace

import pytest
from ray import serve
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatusOverview,
)

from deployments.ingress.discovery.applications import (
    APP_PREFIX,
    Applications,
    Replicas,
    Seen,
    seen,
)
from tests.serving import Served


def overview(status: str, deployment: str | None, **replicas: int) -> ApplicationStatusOverview:
    deployments = {}
    if deployment is not None:
        deployments["Diffusion"] = DeploymentStatusOverview(
            status=DeploymentStatus(deployment),
            status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
            replica_states={ReplicaState(state): count for state, count in replicas.items()},
            message="",
        )
    return ApplicationStatusOverview(
        status=ApplicationStatus(status),
        message="",
        last_deployed_time_s=0.0,
        deployments=deployments,
    )


@pytest.mark.parametrize(
    ("application", "replicas"),
    [
        (overview("RUNNING", "HEALTHY", RUNNING=2), "two"),
        (overview("DEPLOYING", "UPDATING", RUNNING=1, UPDATING=1, STOPPING=1), "two"),
        (overview("DEPLOYING", "UPDATING", RUNNING=1, STARTING=1), "up"),
        (overview("DEPLOYING", "UPDATING", UPDATING=1), "up"),
        (overview("RUNNING", "HEALTHY", RECOVERING=1), "up"),
        (overview("DEPLOY_FAILED", "DEPLOY_FAILED", RUNNING=1), "up"),
        (overview("DEPLOYING", "UPDATING", STARTING=1), "neither"),
        (overview("UNHEALTHY", "UNHEALTHY", STOPPING=1, STARTING=1), "neither"),
        (overview("UNHEALTHY", "UNHEALTHY"), "none"),
        (overview("RUNNING", "HEALTHY"), "asleep"),
        (overview("RUNNING", "DOWNSCALING", STOPPING=1), "asleep, ending"),
        (overview("RUNNING", "UPSCALING"), "none"),
        (overview("RUNNING", "UPSCALING", STARTING=1), "neither"),
        (overview("DEPLOYING", None), "unsaid"),
    ],
)
def test_replicas(application: ApplicationStatusOverview, replicas: str) -> None:
    wanted = {
        "two": Replicas(up=2, none=False, asleep=False),
        "up": Replicas(up=1, none=False, asleep=False),
        "neither": Replicas(up=0, none=False, asleep=False),
        "none": Replicas(up=0, none=True, asleep=False),
        "asleep": Replicas(up=0, none=True, asleep=True),
        "asleep, ending": Replicas(up=0, none=False, asleep=True),
        "unsaid": None,
    }
    assert seen(application) == Seen(application.status.value, wanted[replicas])


def test_what_stands_before_a_model_does_not_count() -> None:
    """Behind Serve's HAProxy; somebody has called it."""
    asleep = overview("RUNNING", "HEALTHY")
    entrance = overview("RUNNING", "UPSCALING", RUNNING=1).deployments["Diffusion"]
    both = {**asleep.deployments, "Entrance": entrance}
    assert seen(replace(asleep, deployments=both)) == seen(asleep)


@pytest.mark.parametrize(
    ("application", "failed"),
    [
        (overview("DEPLOY_FAILED", "DEPLOY_FAILED"), True),
        (overview("DEPLOY_FAILED", None), True),  # unless a replica of before answers
        (overview("DEPLOY_FAILED", "DEPLOY_FAILED", STOPPING=1), False),
        (overview("DEPLOY_FAILED", "DEPLOY_FAILED", STARTING=1), False),
        (overview("UNHEALTHY", "UNHEALTHY"), False),
    ],
)
def test_failed(application: ApplicationStatusOverview, failed: bool) -> None:
    assert seen(application).failed == failed


def test_a_look_sees_what_serve_says(served: Served) -> None:
    served.wait_until_ready("sd15", "sdxl")
    said = serve.status().applications
    looked = Applications("tcd").look()
    assert looked == {
        name.removeprefix(APP_PREFIX): seen(overview)
        for name, overview in said.items()
        if name.startswith(APP_PREFIX)
    }
    assert looked["sd15"].replicas == Replicas(up=1, none=False, asleep=False)
    with pytest.raises(LookupError):
        Applications("unknown").look()
