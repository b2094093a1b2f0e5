"""Trains a base: its UNet and text encoders together, to tell the noise in noised latents."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from demo.train.loop import Task
from demo.train.model import Base
from demo.train.noise import STEPS, Schedule

CAPTION_DROPOUT = 0.12


@dataclass(frozen=True)
class Latents:
    """Training pictures as the autoencoder sees them.

    Attributes:
        latents: (n, 4, 8, 8), of unit deviation.
        ids: (n, encoders, 77) token ids of their captions.
    """

    latents: Tensor
    ids: Tensor

    def batch(
        self, size: int, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`size` random rows: their numbers, latents and ids."""
        index = torch.randint(len(self.latents), (size,), generator=generator)
        return index, self.latents[index].to(device).float(), self.ids[index].to(device)


@dataclass(frozen=True)
class Noised:
    """A batch of latents at random timesteps.

    Attributes:
        x: x_t, like the latents.
        noise: what was added.
        t: (B,).
    """

    x: Tensor
    noise: Tensor
    t: Tensor


def noised(x0: Tensor, schedule: Schedule, generator: torch.Generator) -> Noised:
    """Draw timesteps, one for each stretch of the schedule so that a batch covers it, and noise."""
    size = len(x0)
    stretches = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    t = (stretches * STEPS).long().to(x0.device)
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    return Noised(schedule.add_noise(x0, noise, t), noise, t)


def noise_loss(predicted: Tensor, batch: Noised, schedule: Schedule) -> dict[str, Tensor]:
    """The weighted squared error, and the plain one as "mse"."""
    error = (predicted - batch.noise).square().mean(dim=tuple(range(1, predicted.ndim)))
    return {"loss": (schedule.weight(batch.t) * error).mean(), "mse": error.mean()}


class BaseTask(Task):
    """Noise prediction, with 12% of the captions left out for the sake of guidance."""

    def __init__(self, base: Base, data: Latents, batch_size: int) -> None:
        self.base, self.data, self.batch_size = base, data, batch_size
        self.device = base.unet.device
        self.schedule = Schedule(self.device)
        self.trained = nn.ModuleDict(dict(base.named_children()))

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch."""
        _, x0, ids = self.data.batch(self.batch_size, generator, self.device)
        dropped = torch.rand(len(x0), generator=generator) < CAPTION_DROPOUT
        batch = noised(x0, self.schedule, generator)
        conditioning = self.base.encode(ids, dropped.to(self.device))
        return noise_loss(self.base.noise(batch.x, batch.t, conditioning), batch, self.schedule)
