"""What ties rows together, a batch of them, and how running it ended. No torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from deployments.diffusion.engine.policy.trajectory import Trajectory


class BatchKey(NamedTuple):
    """Rows share a UNet call only if these are equal: the latent size, in latent pixels.

    `frames` is `None` for images. A video shares its calls with nobody: its frames are a
    batch already, and its motion layers mix them. `long`: rows with prompts of very many windows
    are among themselves: all rows of a call attend to as many tokens as the longest has.
    """

    height: int
    width: int
    frames: int | None = None
    long: bool = False

    @property
    def pixels(self) -> int:
        """Latent pixels of one UNet row: what its time is roughly in proportion to."""
        return self.height * self.width


@dataclass(frozen=True)
class Batch:
    """Rows that share one UNet call, for their next step or half of it; all of one key, each in its
    slot."""

    key: BatchKey
    rows: tuple["Trajectory", ...]

    @property
    def unet_rows(self) -> int:
        """Rows that the UNet computes: a guided row brings its unconditional twin."""
        return sum(row.unet_rows for row in self.rows)

    @property
    def pixels(self) -> int:
        """Latent pixels of all these rows."""
        return self.unet_rows * self.key.pixels


class Measured(NamedTuple):
    """What a step took: the size of its UNet rows, how many, and seconds on the device."""

    key: BatchKey
    unet_rows: int
    seconds: float

    @property
    def pixels(self) -> int:
        """Latent pixels of all these rows."""
        return self.unet_rows * self.key.pixels


@dataclass(frozen=True)
class Advanced:
    """The batch took its step, or will: a GPU may still be at it.

    Attributes:
        failures: rows that could not (by row id), and why. They hold no result.
        measured: the newest step that is known to be done; `None` if none has ended since.
    """

    failures: dict[str, Exception]
    measured: Measured | None = None


@dataclass(frozen=True)
class OutOfMemory:
    """The device had no memory for a batch of this size. No row advanced."""

    message: str


Outcome = Advanced | OutOfMemory
