"""Trains a CLIP vision encoder whose embedding tells what a scene holds, for the IP-Adapter.

Linear heads, not kept, read from the embedding what stands at each place and the background. A
shape that training never shows in its colour before its background is no answer: else the heads
would learn to rule it out by the colours, and not see it where it is.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection

from demo.image_encoder import IMAGE_SIZE, PREPROCESSOR, EncoderShape, vision_config
from demo.train.data import scene_and_look
from demo.train.loop import Task
from demo.train.vae import to_tensor
from demo.world.scene import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, held_out

ABSENT = 0  # the class of a place where nothing stands
SIZES_OF_HEADS = {"shape": 1 + len(SHAPES), "colour": 1 + len(COLOURS), "size": 1 + len(SIZES)}
SHAPE_HEADS = [len(SIZES_OF_HEADS) * place for place in range(len(PLACES))]


def make_encoder(shape: EncoderShape) -> CLIPVisionModelWithProjection:
    """An untrained encoder of the architecture of IP-Adapter's."""
    return CLIPVisionModelWithProjection(vision_config(shape))


def preprocessed(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """As CLIPImageProcessor would: (n, 3, 224, 224)."""
    pictures = (to_tensor(pixels, device) + 1) / 2
    big = functional.interpolate(
        pictures, size=IMAGE_SIZE, mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    mean, deviation = (
        torch.tensor(PREPROCESSOR[key], device=device).view(3, 1, 1)
        for key in ("image_mean", "image_std")
    )
    return (big - mean) / deviation


def labels_of(index: int) -> list[int]:
    """Shape, colour and size at each of the three places (0: nothing there), background last."""
    scene, _, _ = scene_and_look(index)
    there = {solid.place: solid for solid in scene.solids}
    labels: list[int] = []
    for place in PLACES:
        solid = there.get(place)
        if solid is None:
            labels += [ABSENT] * 3
        else:
            labels += [
                1 + SHAPES.index(solid.shape),
                1 + COLOURS.index(solid.colour),
                1 + SIZES.index(solid.size),
            ]
    return [*labels, BACKGROUNDS.index(scene.background)]


def ruled_out(index: int) -> NDArray[np.bool_]:
    """(places, 1 + shapes): which shapes the training scene could not have had at a place, since
    they are held out in the colour that is there."""
    scene, _, _ = scene_and_look(index)
    found = np.zeros((len(PLACES), 1 + len(SHAPES)), np.bool_)
    for solid in scene.solids:
        for number, shape in enumerate(SHAPES, start=1):
            other = Scene((replace(solid, shape=shape),), scene.background)
            found[PLACES.index(solid.place), number] = held_out(other)
    return found


class EncoderTask(Task):
    """Cross-entropy of the heads."""

    def __init__(
        self,
        shape: EncoderShape,
        pixels: NDArray[np.uint8],
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.pixels, self.batch_size, self.device = pixels, batch_size, device
        self.encoder = make_encoder(shape).to(device)
        widths = [*SIZES_OF_HEADS.values()] * len(PLACES) + [len(BACKGROUNDS)]
        self.heads = nn.ModuleList(nn.Linear(shape.projection_dim, width) for width in widths).to(
            device
        )
        self.trained = nn.ModuleDict({"encoder": self.encoder, "heads": self.heads})
        self.labels = torch.tensor([labels_of(index) for index in range(len(pixels))])
        self.ruled_out = torch.from_numpy(np.stack([ruled_out(i) for i in range(len(pixels))]))

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch; "right" is the share of labels that are."""
        index = torch.randint(len(self.pixels), (self.batch_size,), generator=generator)
        pictures = preprocessed(self.pixels[index.numpy()], self.device)
        embedding = self.encoder(pictures).image_embeds.float()
        labels = self.labels[index].to(self.device)
        outputs = [head(embedding).float() for head in self.heads]
        never = self.ruled_out[index].to(self.device)
        for place, number in enumerate(SHAPE_HEADS):
            outputs[number] = outputs[number].masked_fill(never[:, place], -torch.inf)
        loss = torch.stack(
            [functional.cross_entropy(output, labels[:, i]) for i, output in enumerate(outputs)]
        ).mean()
        right = [(out.argmax(1) == labels[:, i]).float().mean() for i, out in enumerate(outputs)]
        return {"loss": loss, "right": torch.stack(right).mean()}
