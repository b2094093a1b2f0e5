"""Trains a base: its UNet and text encoders together, to tell the noise in noised latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from demo.train.loop import Task
from demo.train.model import LATENT_SIDE, Base
from demo.train.noise import STEPS, Schedule

CAPTION_DROPOUT = 0.12


class Batch(NamedTuple):
    """What a task draws to learn from.

    Attributes:
        latents: (B, 4, side, side), of unit deviation.
        ids: (B, encoders, 77) token ids of their captions.
        enlarged: how many times larger the pictures are than they were.
        given: (B, ...) what an adapter is given with each; empty where none is trained.
    """

    latents: Tensor
    ids: Tensor
    enlarged: int
    given: Tensor


@dataclass(frozen=True)
class Latents:
    """A training set of pictures of one size in latent space.

    Attributes:
        latents, ids, enlarged, given: of all of them, as in `Batch`.
    """

    latents: Tensor
    ids: Tensor
    enlarged: int = 1
    given: Tensor | None = None

    def batch(self, size: int, generator: torch.Generator, device: torch.device) -> Batch:
        """`size` of them; of larger ones fewer, so that a batch takes about as long."""
        count = max(1, size * LATENT_SIDE // self.latents.shape[-1])
        index = torch.randint(len(self.latents), (count,), generator=generator)
        given = torch.empty(count, 0) if self.given is None else self.given[index]
        x0 = self.latents[index].to(device).float()
        return Batch(x0, self.ids[index].to(device), self.enlarged, given.to(device))


@dataclass(frozen=True)
class Sizes:
    """Pictures of several sizes; every batch is of one.

    Attributes:
        parts: one for each size.
        shares: of the batches.
    """

    parts: Sequence[Latents]
    shares: Sequence[float]

    def batch(self, size: int, generator: torch.Generator, device: torch.device) -> Batch:
        """`Latents.batch` of one of the sizes."""
        chosen = torch.multinomial(torch.tensor(self.shares), 1, generator=generator)
        return self.parts[int(chosen)].batch(size, generator, device)


Data = Latents | Sizes


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


def noised(x0: Tensor, schedule: Schedule, generator: torch.Generator, lean: float = 1.0) -> Noised:
    """Draw timesteps, one for each stretch of the schedule so that a batch covers it, and noise.

    Args:
        lean: above 1, more of them are noisy: half are beyond 0.5 ^ (1 / lean) of the schedule.
    """
    size = len(x0)
    stretches = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    t = (stretches ** (1 / lean) * STEPS).long().to(x0.device)
    noise = torch.randn(x0.shape, generator=generator).to(x0.device)
    return Noised(schedule.add_noise(x0, noise, t), noise, t)


def noise_loss(predicted: Tensor, batch: Noised, schedule: Schedule) -> dict[str, Tensor]:
    """The weighted squared error, and the plain one as "mse"."""
    error = (predicted - batch.noise).square().mean(dim=tuple(range(1, predicted.ndim)))
    return {"loss": (schedule.weight(batch.t) * error).mean(), "mse": error.mean()}


class BaseTask(Task):
    """Noise prediction, with 12% of the captions left out for the sake of guidance."""

    def __init__(self, base: Base, data: Data, batch_size: int) -> None:
        self.base, self.data, self.batch_size = base, data, batch_size
        self.device = base.unet.device
        self.schedule = Schedule(self.device)
        self.trained = nn.ModuleDict(dict(base.named_children()))

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch."""
        drawn = self.data.batch(self.batch_size, generator, self.device)
        dropped = torch.rand(len(drawn.ids), generator=generator) < CAPTION_DROPOUT
        batch = noised(drawn.latents, self.schedule, generator)
        conditioning = self.base.encode(drawn.ids, dropped.to(self.device))
        conditioning = conditioning._replace(enlarged=drawn.enlarged)
        return noise_loss(self.base.noise(batch.x, batch.t, conditioning), batch, self.schedule)
