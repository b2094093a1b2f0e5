"""What other threads say to the engine's, which reads it between two steps."""

from dataclasses import dataclass

from configs.app import Limits
from deployments.diffusion.engine.adapters.shelf import LoraRead, LoraSlow
from deployments.diffusion.engine.policy.registry import Entry
from deployments.diffusion.engine.policy.spec import LoraSource
from deployments.diffusion.engine.steps.preparation import Forgotten, Prepared


@dataclass(frozen=True)
class Submit:
    """A job that was admitted. `loras`: sources of its adapters, by key."""

    entry: Entry
    loras: dict[str, LoraSource]


@dataclass(frozen=True)
class Cancel:
    """A caller wants no more of a job."""

    job_id: str


@dataclass(frozen=True)
class Reconfigure:
    """New limits are in force."""

    limits: Limits


@dataclass(frozen=True)
class Relieved:
    """The decoder has room again, and the figures are to be renewed."""


@dataclass(frozen=True)
class Broken:
    """Another thread met what no request is to blame for."""

    error: Exception


@dataclass(frozen=True)
class Stop:
    """The engine is to end."""


Message = (
    Submit
    | Cancel
    | Reconfigure
    | Relieved
    | Broken
    | Stop
    | LoraRead
    | LoraSlow
    | Prepared
    | Forgotten
)
