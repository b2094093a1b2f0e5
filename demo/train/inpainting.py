"""Trains the inpainting UNet: nine channels, from a base's, to fill holes as the caption says."""

import copy

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn

from demo.train.diffusion import CAPTION_DROPOUT, Data, noise_loss, noised
from demo.train.loop import Task
from demo.train.model import Base
from demo.train.noise import Schedule
from demo.unet import INPAINTING_CHANNELS, LATENT_CHANNELS

GREY = 127  # of the hole: zero, where pictures are from -1 to 1
CELL = 8  # pixels along the side of a latent
WHOLE = 0.1  # of the masks hide everything


def widen(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy with nine input channels; the new ones, mask and masked latents, do nothing yet."""
    wide: UNet2DConditionModel = copy.deepcopy(unet)
    old = wide.conv_in
    new = nn.Conv2d(INPAINTING_CHANNELS, old.out_channels, 3, padding=1).to(unet.device)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, :LATENT_CHANNELS] = old.weight
    new.bias = nn.Parameter(old.bias.detach().clone())
    wide.conv_in = new
    wide.register_to_config(in_channels=INPAINTING_CHANNELS)
    return wide


def mask_of(index: int, side: int) -> NDArray[np.bool_]:
    """The hole (side, side), in latent cells, of the picture of this number: a rectangle."""
    rng = np.random.default_rng([9, index])
    mask = np.zeros((side, side), np.bool_)
    if rng.random() < WHOLE:
        return ~mask
    height, width = rng.integers(3 * side // 8, side + 1, 2)
    top = rng.integers(0, side - height + 1)
    left = rng.integers(0, side - width + 1)
    mask[top : top + height, left : left + width] = True
    return mask


def masked_picture(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture with its hole in grey."""
    hole = mask.repeat(CELL, 0).repeat(CELL, 1)
    return np.where(hole[:, :, None], np.uint8(GREY), pixels)


class InpaintingTask(Task):
    """Noise prediction of the whole picture; all of the UNet learns, the text encoder rests.

    Given are five channels with each picture: its mask, and the latents of what that leaves.
    """

    def __init__(self, base: Base, data: Data, batch_size: int) -> None:
        self.base, self.data, self.batch_size = base.requires_grad_(False), data, batch_size
        self.device = base.unet.device
        self.schedule = Schedule(self.device)
        base.unet = widen(base.unet).requires_grad_(True)
        self.trained = nn.ModuleDict({"unet": base.unet})

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch."""
        x0, ids, _, given = self.data.batch(self.batch_size, generator, self.device)
        dropped = torch.rand(len(x0), generator=generator) < CAPTION_DROPOUT
        batch = noised(x0, self.schedule, generator)
        with torch.no_grad():
            conditioning = self.base.encode(ids, dropped.to(self.device))
        x = torch.cat([batch.x, given], dim=1)
        return noise_loss(self.base.noise(x, batch.t, conditioning), batch, self.schedule)
