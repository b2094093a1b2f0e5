"""What is known of the models: what the directory tells the ingresses."""

from dataclasses import dataclass

from ray.serve.handle import DeploymentHandle

from configs.names import Names
from deployments.contracts.cards import Availability, ModelCard


@dataclass(frozen=True)
class Outlook:
    """What is known of a model.

    Attributes:
        state: what Serve says of its application, such as "RUNNING".
        availability: "ready": a replica answers; "silent": one runs and did not answer when it was
            last asked; "asleep": scaled to zero, and started by the next request; "starting": none
            runs yet, or none that has said what it is, and Serve is at it; "failed": none will
            run until it is deployed anew.
        card: the last one known; `None`: it has never been described.
        handle: `None`: Serve has not given one yet.
        replicas: how many run.
    """

    name: str
    state: str
    availability: Availability
    card: ModelCard | None = None
    handle: DeploymentHandle[object] | None = None
    replicas: int = 0

    @property
    def up(self) -> bool:
        """Whether a replica runs that has answered before."""
        return self.availability in ("ready", "silent")

    @property
    def answers(self) -> bool:
        """Whether a request would be answered, if only after the model has been woken."""
        return self.availability in ("ready", "asleep")


@dataclass(frozen=True)
class Snapshot:
    """All models at one time.

    Attributes:
        directory: which process says so: it begins to count anew when it is replaced.
        number: grows with every change.
        names: of the models; `None`: those of `ServiceArgs`.
        names_fault: why newer ones are refused.
    """

    directory: str
    number: int
    models: dict[str, Outlook]
    names: Names | None = None
    names_fault: str | None = None
