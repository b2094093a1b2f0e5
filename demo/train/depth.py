"""Trains the depth estimator on the renderer's exact depth."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import DPTForDepthEstimation

from demo.depth import IMAGE_SIZE, depth_config
from demo.train.data import scene_and_look
from demo.train.loop import Task
from demo.train.vae import to_tensor
from demo.world.renderer import SIDE, depth_map

INVERSE_SCALE = 5.0  # of the inverse depth: its values are then from 0 (sky) to about 0.9


def resized(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """As DPTImageProcessor would: (n, 3, 192, 192) of -1 to 1."""
    pictures = to_tensor(pixels, device)
    return functional.interpolate(
        pictures, size=IMAGE_SIZE, mode="bicubic", antialias=True, align_corners=False
    ).clamp(-1, 1)


def inverse_depth(index: int) -> NDArray[np.float32]:
    """What the estimator should say of the training picture of this number: (64, 64)."""
    scene, look, _ = scene_and_look(index)
    return (INVERSE_SCALE / depth_map(scene, look)).astype(np.float32)


class DepthTask(Task):
    """L1 of the inverse depth."""

    def __init__(self, pixels: NDArray[np.uint8], batch_size: int, device: torch.device) -> None:
        self.pixels, self.batch_size, self.device = pixels, batch_size, device
        self.model = DPTForDepthEstimation(depth_config()).to(device)
        with torch.no_grad():  # else its last activation may be dead from the start
            self.model.head.head[4].bias.fill_(0.3)
        self.trained = nn.ModuleDict({"model": self.model})

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch."""
        index = torch.randint(len(self.pixels), (self.batch_size,), generator=generator)
        maps = torch.from_numpy(np.stack([inverse_depth(int(i)) for i in index]))
        pictures = resized(self.pixels[index.numpy()], self.device)
        predicted = self.model(pictures).predicted_depth.float()[:, None]
        small = functional.interpolate(
            predicted, size=SIDE, mode="bilinear", antialias=True, align_corners=False
        )
        return {"loss": functional.l1_loss(small[:, 0], maps.to(self.device))}
