"""Trains style LoRAs: noise prediction on pictures in one style, the base held fast."""

import torch
from torch import Tensor, nn

from demo.lora import ATTENTION, CONVOLUTION, TIME_EMBEDDING, Format
from demo.train.diffusion import CAPTION_DROPOUT, Data, noise_loss, noised
from demo.train.loop import Task
from demo.train.lora import add_lora
from demo.train.model import Base
from demo.train.noise import Schedule
from demo.world.style import Style

RANK = 8
LAYERS = ATTENTION + CONVOLUTION + TIME_EMBEDDING
FORMATS: dict[Style, Format] = {"papercut": "kohya", "ink": "diffusers", "neon": "peft"}


class StyleTask(Task):
    """The captions say nothing of the style: the LoRA alone brings it."""

    def __init__(self, base: Base, data: Data, batch_size: int, rank: int = RANK) -> None:
        self.base, self.data, self.batch_size = base.requires_grad_(False), data, batch_size
        self.device = base.unet.device
        self.schedule = Schedule(self.device)
        add_lora(base.unet, rank, LAYERS)
        self.trained = nn.ModuleDict({"unet": base.unet})

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch."""
        drawn = self.data.batch(self.batch_size, generator, self.device)
        dropped = torch.rand(len(drawn.ids), generator=generator) < CAPTION_DROPOUT
        batch = noised(drawn.latents, self.schedule, generator)
        with torch.no_grad():
            conditioning = self.base.encode(drawn.ids, dropped.to(self.device))
        return noise_loss(self.base.noise(batch.x, batch.t, conditioning), batch, self.schedule)
