"""What a replica says of itself to those who choose between replicas. No torch, no Ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from zlib import crc32

from deployments.contracts.jobs import ImageJob
from deployments.diffusion.engine.policy.estimate import UNMEASURED_DECODE_S, UNMEASURED_STEP_S

MOST_ADAPTERS = 256  # of each kind that a report names
UNMEASURED_PIXELS = 64.0**2


@dataclass(frozen=True)
class Report:
    """A replica at one moment, in a size that does not grow with its adapters.

    Attributes:
        pending_s: until everything that it has accepted is done, in tenths of a second.
        step_pixel_s, decode_pixel_s: seconds of the UNet for a latent pixel of a row's step, and of
            the VAE for a latent pixel.
        rows_total: UNet rows computed so far. A replica at work says something else each time; one
            that rests says the same.
        adapters: fingerprints of those on its device, of `MOST_ADAPTERS` at most.
        failed: likewise of those that of late could not be brought there.
    """

    pending_s: float = 0.0
    step_pixel_s: float = UNMEASURED_STEP_S / UNMEASURED_PIXELS
    decode_pixel_s: float = UNMEASURED_DECODE_S / UNMEASURED_PIXELS
    rows_total: int = 0
    adapters: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()

    @property
    def stats(self) -> dict[str, object]:
        """In plain types: Serve's controller, which hands it on, knows none of ours."""
        return {
            "rows_total": self.rows_total,
            "pending_s": round(self.pending_s, 1),
            "step_pixel_s": self.step_pixel_s,
            "decode_pixel_s": self.decode_pixel_s,
            "adapters": sorted(self.adapters),
            "failed": sorted(self.failed),
        }

    @classmethod
    def of(cls, stats: Mapping[str, object]) -> Self | None:
        """A report again; `None`: the replica has not said anything, or something else."""
        match stats:
            case {
                "pending_s": int() | float() as pending_s,
                "step_pixel_s": float() as step_pixel_s,
                "decode_pixel_s": float() as decode_pixel_s,
                "rows_total": int() as rows_total,
                "adapters": list() as adapters,
                "failed": list() as failed,
            }:
                paces = step_pixel_s, decode_pixel_s
                kinds = frozenset(adapters), frozenset(failed)
                return cls(float(pending_s), *paces, rows_total, *kinds)
        return None


def fingerprint(unet: str, name: str) -> int:
    """Of an adapter by its catalogue name, for one of a model's UNets."""
    return crc32(f"{unet}/{name}".encode())


def adapters_of(job: ImageJob) -> tuple[int, ...]:
    """Fingerprints of a job's adapters; of a video both kinds go to the motion UNet."""
    unet = "unet" if job.num_frames is None else "motion_unet"
    return tuple(fingerprint(unet, lora.name) for lora in (*job.loras, *job.motion_loras))
