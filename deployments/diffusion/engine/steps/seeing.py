"""The pictures that rows see by IP-Adapters: made ready once a job, shown before each call."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deployments.contracts.jobs import Mask
from deployments.diffusion.engine.models.image_attention import ImageAttention, Seen, Sight
from deployments.diffusion.engine.pixels.sources import HALF
from deployments.diffusion.engine.steps.staging import Numbers


def weights_by_level(
    scale: float, mask: Mask | None, size: tuple[int, int], levels: int
) -> list[Tensor]:
    """How strongly a picture acts at each pixel of each level of a UNet, (pixels,) on the CPU.

    As diffusers' `IPAdapterMaskProcessor`: the mask is 0 or 1, and bicubic on its way down. (Where
    a side of the latents is odd, diffusers guesses a level's size, and may pad the mask instead.)

    Args:
        mask: (height, width), 255 where it acts; `None`: everywhere.
        size: (height, width) of the latents.
    """
    height, width = size
    sizes = [(-(-height // 2**level), -(-width // 2**level)) for level in range(levels)]
    if mask is None:
        return [torch.full((h * w,), scale) for h, w in sizes]
    whole = torch.from_numpy(mask.copy())[None, None].ge(HALF).float()
    return [scale * F.interpolate(whole, size=hw, mode="bicubic").flatten() for hw in sizes]


class SeenPlan:
    """What the rows of a step see. Made before the step's numbers are uploaded.

    Args:
        seen: of each row of the call.
    """

    def __init__(self, seen: Sequence[Sequence[Seen]], numbers: Numbers) -> None:
        self._shown: list[tuple[tuple[int, ...], tuple[Seen, ...], int, int]] = []
        for nth in range(max(map(len, seen), default=0)):
            indices = tuple(index for index, row in enumerate(seen) if nth < len(row))
            chosen = tuple(seen[index][nth] for index in indices)
            counts = [len(one.keys_values) for one in chosen]
            self._shown.append((indices, chosen, numbers.put(indices), numbers.put(counts)))

    def show(self, attention: ImageAttention, numbers: Numbers) -> None:
        """Tells a UNet's attention."""
        attention.show(
            [
                Sight(indices, chosen, numbers[rows], numbers[counts])
                for indices, chosen, rows, counts in self._shown
            ]
        )
