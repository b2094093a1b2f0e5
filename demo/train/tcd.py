"""Distils a base into a TCD-LoRA: trajectory consistency distillation, arXiv 2402.19159.

The trajectory consistency function f(x_t, t, s) = alpha_s x0(x_t, eps) + sigma_s eps takes x_t
along the student's noise eps to any earlier s (equation 16, first order). It is trained to
give the same from x_t as from the teacher's own next point x_t', one guided DDIM step further:

    distance(f_student(x_t, t, s), f_target(x_t', t', s)),  s uniform from 0 to t'

where the target's LoRA is the moving average of the student's. Sampling then jumps from t to s
and adds noise from there up to the next t: the strategic stochastic sampling of TCDScheduler.
"""

import copy

import torch
from torch import Tensor, nn

from demo.lora import TCD_LAYERS
from demo.train.diffusion import Data
from demo.train.loop import Task
from demo.train.lora import add_lora
from demo.train.model import Base
from demo.train.noise import STEPS, Schedule

RANK = 16
SOLVER_STEPS = 25  # the teacher's DDIM steps from noise to picture
GUIDANCE = (2.0, 3.0)  # the teacher's, drawn for each row
TARGET_DECAY = 0.95
HUBER = 0.001


class TcdTask(Task):
    """The distillation of `base`, which stays as it is."""

    def __init__(self, base: Base, data: Data, batch_size: int, rank: int = RANK) -> None:
        self.base, self.data, self.batch_size = base.requires_grad_(False), data, batch_size
        self.device = base.unet.device
        self.schedule = Schedule(self.device)
        self.student = copy.deepcopy(base)
        add_lora(self.student.unet, rank, TCD_LAYERS)
        self.target = copy.deepcopy(self.student).requires_grad_(False)
        self.trained = nn.ModuleDict({"student": self.student.unet, "target": self.target.unet})
        self._pairs = _lora_pairs(self.student.unet, self.target.unet)

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch."""
        x0, ids, enlarged, _ = self.data.batch(self.batch_size, generator, self.device)
        size = len(x0)
        stride = STEPS // SOLVER_STEPS
        t = (torch.randint(SOLVER_STEPS, (size,), generator=generator) + 1) * stride - 1
        next_t = (t - stride).clamp(min=0)
        s = (torch.rand(size, generator=generator) * (next_t + 1)).long()
        low, high = GUIDANCE
        scale = low + (high - low) * torch.rand(size, 1, 1, 1, generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        t, next_t, s = t.to(self.device), next_t.to(self.device), s.to(self.device)
        x = self.schedule.add_noise(x0, noise.to(self.device), t)
        with torch.no_grad():
            conditioning = self.base.encode(ids)._replace(enlarged=enlarged)
            teacher = self.base.guided(x, t, conditioning, scale.to(self.device))
            next_x = self.schedule.move(x, teacher, t, next_t)
            eps = self.target.noise(next_x, next_t, conditioning)
            target = self.schedule.move(next_x, eps, next_t, s)
        eps = self.student.noise(x, t, conditioning)
        error = self.schedule.move(x, eps, t, s) - target
        loss = ((error.square() + HUBER**2).sqrt() - HUBER).mean()
        return {"loss": loss, "mse": error.square().mean()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The target follows the student."""
        del step
        for student, target in self._pairs:
            target.lerp_(student, 1 - TARGET_DECAY)


def _lora_pairs(student: nn.Module, target: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The student's trained tensors, each with the target's."""
    there: dict[str, nn.Parameter] = dict(target.named_parameters())
    return [
        (parameter.data, there[name].data)
        for name, parameter in student.named_parameters()
        if parameter.requires_grad
    ]
