"""Trains ControlNets: from canny edges or depth of the picture to be made, the base held fast."""

from typing import Literal, get_args

import numpy as np
import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn

from demo.controlnet import EMBEDDING_WIDTHS
from demo.train.data import Series
from demo.train.diffusion import Data, noise_loss, noised
from demo.train.loop import Task
from demo.train.model import Base, added
from demo.train.noise import Schedule
from demo.world.renderer import depth_map
from preprocessors.canny import canny

Control = Literal["canny", "depth"]
CONTROLS: tuple[Control, ...] = get_args(Control)
CAPTION_DROPOUT = 0.3  # so that the map is needed
SILU_GAIN = 1.3  # over ReLU's
LAST_GAIN = 0.7


def disparity(depth: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A depth map as a depth estimator shows it: near is 255, the farthest is 0."""
    inverse = 1 / depth
    low, high = inverse.min(), inverse.max()
    grey: NDArray[np.uint8] = ((inverse - low) / (high - low) * 255).round().astype(np.uint8)
    return grey


def control_maps(control: Control, series: Series, pixels: NDArray[np.uint8]) -> Tensor:
    """The control maps (n, side, side) uint8 of the first pictures of a series."""
    if control == "canny":
        maps = [canny(picture)[:, :, 0] for picture in pixels]
    else:
        looks = (series.scene_and_look(index) for index in range(len(pixels)))
        maps = [disparity(depth_map(scene, look, side=series.side)) for scene, look, _ in looks]
    return torch.from_numpy(np.stack(maps))


@torch.no_grad()
def open_eyes(controlnet: ControlNetModel) -> None:
    """Initialise the layers that read the map so that its contrast comes through.

    By torch's defaults a thousandth of it is left after these seven narrow layers, and the last
    one begins at zero: such a ControlNet had learned nothing of its map after 50,000 pictures.
    That it changes nothing in the beginning is seen to by its zero convolutions.
    """
    embedding = controlnet.controlnet_cond_embedding
    for layer in (embedding.conv_in, *embedding.blocks):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        layer.weight *= SILU_GAIN
        layer.bias.zero_()
    nn.init.kaiming_normal_(embedding.conv_out.weight, nonlinearity="relu")
    embedding.conv_out.weight *= LAST_GAIN


class ControlTask(Task):
    """Noise prediction with the map's residuals at full scale. Given is a map with each picture."""

    def __init__(self, base: Base, data: Data, batch_size: int) -> None:
        self.base, self.data, self.batch_size = base.requires_grad_(False), data, batch_size
        self.device = base.unet.device
        self.schedule = Schedule(self.device)
        self.controlnet: ControlNetModel = ControlNetModel.from_unet(
            base.unet, conditioning_embedding_out_channels=EMBEDDING_WIDTHS
        ).requires_grad_(True)
        self.controlnet.set_attn_processor(AttnProcessor())
        open_eyes(self.controlnet)
        self.trained = nn.ModuleDict({"controlnet": self.controlnet})

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch."""
        x0, ids, _, maps = self.data.batch(self.batch_size, generator, self.device)
        image = maps.float()[:, None] / 255
        dropped = torch.rand(len(x0), generator=generator) < CAPTION_DROPOUT
        batch = noised(x0, self.schedule, generator)
        with torch.no_grad():
            conditioning = self.base.encode(ids, dropped.to(self.device))
        down, mid = self.controlnet(
            batch.x,
            batch.t,
            encoder_hidden_states=conditioning.states,
            controlnet_cond=image.expand(-1, 3, -1, -1),
            added_cond_kwargs=added(conditioning, batch.x),
            return_dict=False,
        )
        predicted = self.base.noise(batch.x, batch.t, conditioning, list(down), mid)
        return noise_loss(predicted, batch, self.schedule)
