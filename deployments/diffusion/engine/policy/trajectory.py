"""One image on its way from noise to latents: the state that the host keeps. No torch."""

from dataclasses import dataclass, field
from enum import Enum

from deployments.contracts.jobs import Caller
from deployments.diffusion.engine.policy.batch import BatchKey
from deployments.diffusion.engine.policy.spec import RowSpec


class Status(Enum):
    """Where a trajectory stands.

    PREPARING: waits for its adapters. WAITING: could run, holds no device memory yet.
    JOINING: has a slot, its prompt and pictures are being encoded. RUNNING: takes steps.
    FINISHED, FAILED, ABORTED: has left the scheduler.
    """

    PREPARING = "preparing"
    WAITING = "waiting"
    JOINING = "joining"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    ABORTED = "aborted"


@dataclass(slots=True, eq=False)
class Trajectory:
    """A row of the batch, as the scheduler sees it.

    Attributes:
        row_id: unique.
        cursor: steps taken so far.
        half_taken: of a step that takes two calls the first was made.
        priority: higher goes first; waiting raises it (see `Scheduler`).
        deadline: on the clock of `time.monotonic`; `None`: never.
        caller: for whom it is made.
        slot: index of its device memory in the runner; `None` while it has none.
        passed_over: schedules in a row that left it out.
        work_before: latent pixels computed for others since it could have been.
        short_of_memory: its last step ran out of memory though it was alone.
        call_rows: UNet rows of the largest calls in which it is in time, by when it was first seen
            able to run; `None`: not yet.
    """

    row_id: str
    spec: RowSpec
    priority: int = 0
    deadline: float | None = None
    status: Status = Status.WAITING
    cursor: int = 0
    half_taken: bool = False
    slot: int | None = None
    passed_over: int = 0
    work_before: int = 0
    arrival: int = 0
    short_of_memory: bool = False
    call_rows: float | None = None
    caller: Caller = field(default_factory=Caller)

    @property
    def key(self) -> BatchKey:
        """What must be equal for rows to share a UNet call."""
        return self.spec.key

    @property
    def steps(self) -> int:
        """UNet steps from start to end."""
        return self.spec.steps

    @property
    def calls_a_step(self) -> int:
        """UNet calls that one of its steps takes."""
        return self.spec.calls_a_step

    @property
    def unet_rows(self) -> int:
        """Rows that it takes in a UNet call."""
        return self.spec.unet_rows

    @property
    def call_pixels(self) -> int:
        """The work of one call: latent pixels of its UNet rows."""
        return self.unet_rows * self.key.pixels

    @property
    def work(self) -> int:
        """All of its work: latent pixels of its UNet rows in all its calls."""
        return self.spec.work

    def level(self, aging_steps: int) -> int:
        """Its effective priority: one more whenever, for each step of its own, `aging_steps` steps
        as large were taken for others."""
        return self.priority + self.work_before // (aging_steps * self.work)

    @property
    def begun(self) -> bool:
        """Whether a call was made for it."""
        return self.cursor > 0 or self.half_taken

    @property
    def charge(self) -> float:
        """What a call costs its caller: work by the caller's weight."""
        return self.call_pixels / self.caller.weight

    @property
    def pending_calls(self) -> int:
        """UNet calls that it still needs."""
        return (self.steps - self.cursor) * self.calls_a_step - self.half_taken

    @property
    def pending_unet_rows(self) -> int:
        """UNet rows that it still needs."""
        return self.pending_calls * self.unet_rows

    def advance(self) -> None:
        """A call was made: it has taken a step, or half of one."""
        self.half_taken = self.calls_a_step == 2 and not self.half_taken
        self.cursor += not self.half_taken

    @property
    def decode_pixels(self) -> int:
        """Latent pixels that the VAE will have to decode of it."""
        return (self.spec.frames or 1) * self.key.pixels

    @property
    def pending_pixels(self) -> int:
        """Latent pixels of those rows."""
        return self.pending_unet_rows * self.key.pixels
