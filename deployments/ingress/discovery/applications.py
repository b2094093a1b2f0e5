"""What Serve says of the model applications, and handles to them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatusOverview,
)

APP_PREFIX = "model-"
DEPLOYMENT = "Diffusion"  # of such an application; Serve's HAProxy adds one that nobody calls
# States of replicas. Serve itself sends requests to the first two; the others are such replicas
# at a moment when they take a new `user_config`, or when its controller has begun anew.
UP = frozenset({"RUNNING", "PENDING_MIGRATION", "UPDATING", "RECOVERING"})
ENDING = frozenset({"STOPPING", "STOPPED"})
RESTING = frozenset({"HEALTHY", "DOWNSCALING"})


@dataclass(frozen=True)
class Replicas:
    """Of one model.

    Attributes:
        up: how many have started and not ended.
        none: none is there in any state.
        asleep: none is up or starting, and none is to be: the model is scaled to zero.
    """

    up: int
    none: bool
    asleep: bool


@dataclass(frozen=True)
class Seen:
    """A model application in one look.

    Attributes:
        state: as Serve says it, such as "RUNNING".
        replicas: `None` if Serve does not say. It lists none while it imports an application
            anew, nor when that has failed, whatever runs of it.
    """

    state: str
    replicas: Replicas | None

    @property
    def ends(self) -> bool:
        """Whether the application is being deleted."""
        return self.state == ApplicationStatus.DELETING.value

    @property
    def failed(self) -> bool:
        """Whether Serve has given it up, until it is deployed anew, and nothing of it is left."""
        given_up = self.state == ApplicationStatus.DEPLOY_FAILED.value
        return given_up and (self.replicas is None or self.replicas.none)


class Applications:
    """The model applications of this Serve instance, as its controller knows them.

    Every method blocks until the controller answers, and raises what Ray raises if it does not.

    Args:
        own: the name of the application that asks.
    """

    def __init__(self, own: str) -> None:
        self._own = own

    def look(self) -> Mapping[str, Seen]:
        """The applications named `model-<name>`, by the model's name.

        `serve.status()` says the same, but makes objects of all of the configuration first: the
        largest part of what an idle service costs.
        """
        client = _get_global_client(raise_if_no_controller_running=False)
        applications = {} if client is None else client.get_serve_details()["applications"]
        if self._own not in applications:
            raise LookupError("Serve does not list this application: it knows of none yet")
        return {
            name.removeprefix(APP_PREFIX): seen(_overview(details))
            for name, details in applications.items()
            if name.startswith(APP_PREFIX)
        }

    def handle(self, model: str) -> DeploymentHandle[object]:
        """A handle to a model. Making one starts no replica."""
        return serve.get_deployment_handle(DEPLOYMENT, APP_PREFIX + model)


def seen(overview: ApplicationStatusOverview) -> Seen:
    """What one look says of an application."""
    state = str(overview.status.value)
    model = overview.deployments.get(DEPLOYMENT)
    if model is None:
        return Seen(state, None)
    states: Counter[str] = Counter({s: n for s, n in model.replica_states.items() if n})
    return Seen(
        state,
        Replicas(
            up=sum(states[state] for state in UP),
            none=not states,
            asleep=model.status.value in RESTING
            and overview.status == ApplicationStatus.RUNNING
            and not states.keys() - ENDING,
        ),
    )


def _overview(details: Any) -> ApplicationStatusOverview:
    """What `serve.status()` makes of an application's details."""
    return ApplicationStatusOverview(
        status=ApplicationStatus(details["status"]),
        message=details["message"],
        last_deployed_time_s=details["last_deployed_time_s"],
        deployments={
            name: DeploymentStatusOverview(
                status=DeploymentStatus(deployment["status"]),
                status_trigger=DeploymentStatusTrigger(deployment["status_trigger"]),
                replica_states=dict(Counter(r["state"].value for r in deployment["replicas"])),
                message=deployment["message"],
            )
            for name, deployment in details["deployments"].items()
        },
    )
