"""Videos longer than motion layers can see: FreeNoise (arXiv 2310.15169).

Motion layers attend among the frames of a window. The windows slide over the video, what they say
of a frame is averaged, most weight to the window in whose middle it stands, and the noise of
later frames is that of earlier ones in another order. All other layers see each frame once.
`diffusers` has the same as `enable_free_noise`.
"""

from collections.abc import Iterator

import torch
from diffusers import UNetMotionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor

WINDOW = 16  # frames: as many as AnimateDiff's modules were trained with
STRIDE = 4  # from the first frame of a window to that of the next


class FreeNoise:
    """Where the windows of long videos lie, and what noise they begin with.

    Args:
        longest: frames for which motion layers have positions; a video of so many needs no
            windows.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._length = min(WINDOW, longest)
        self._stride = min(STRIDE, self._length)
        self._windows: dict[int, list[tuple[slice, Tensor]]] = {}

    def concerns(self, frames: int) -> bool:
        """Whether a video of so many is seen in windows."""
        return frames > self._longest

    def windows(self, hidden: Tensor) -> list[tuple[slice, Tensor]]:
        """The windows of a video, and each one's share in its frames: (length, 1). The shares in a
        frame add up to 1.

        Args:
            hidden: (..., frames, channels); of all calls the same device and dtype.
        """
        frames = hidden.shape[-2]
        if frames not in self._windows:
            self._windows[frames] = list(self._shared(frames, hidden))
        return self._windows[frames]

    def _shared(self, frames: int, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
        length, last = self._length, frames - self._length
        starts = [*range(0, last, self._stride), last]
        places = torch.arange(length, device=like.device)
        weights = torch.minimum(places + 1, length - places).float()
        total = weights.new_zeros(frames)
        for start in starts:
            total[start : start + length] += weights
        for start in starts:
            window = slice(start, start + length)
            yield window, (weights / total[window]).to(like.dtype)[:, None]

    def shuffle(self, noise: Tensor, generator: torch.Generator) -> None:
        """Has the frames of a long video behind the first window repeat the noise of those before,
        in an order drawn from the generator. A video without windows keeps its noise.

        Args:
            noise: (C, frames, h, w), on the generator's device; changed in place.
        """
        frames = noise.shape[1]
        if not self.concerns(frames):
            return
        for start in range(self._length, frames, self._stride):
            drawn = torch.randperm(self._stride, generator=generator)[: frames - start]
            noise[:, start : start + self._stride] = noise[:, start - self._length + drawn]


class WindowedBlock(BasicTransformerBlock):
    """A transformer block of motion layers that sees long videos in windows."""

    free_noise: FreeNoise

    def forward(self, hidden_states: Tensor, **more: object) -> Tensor:
        """As `BasicTransformerBlock`, whose two attentions are within each window.

        Args:
            hidden_states: (pixels, frames, channels).
            more: of other kinds of blocks; motion layers have no use for it.
        """
        if not self.free_noise.concerns(hidden_states.shape[1]):
            whole: Tensor = super().forward(hidden_states, **more)
            return whole
        attended = torch.zeros_like(hidden_states)
        for window, share in self.free_noise.windows(hidden_states):
            attended[:, window] += share * self._attended(hidden_states[:, window])
        fed: Tensor = self.ff(self.norm3(attended))
        return attended + fed

    def _attended(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.pos_embed(self.norm1(x)))
        attended: Tensor = x + self.attn2(self.pos_embed(self.norm2(x)))
        return attended


def see_in_windows(unet: UNetMotionModel, free_noise: FreeNoise) -> None:
    """Makes each transformer block of the motion layers a `WindowedBlock`, in place: adapters find
    its layers by the same names."""
    for layer in unet.modules():
        if isinstance(layer, AnimateDiffTransformer3D):
            for block in layer.transformer_blocks:
                block.__class__ = WindowedBlock
                block.free_noise = free_noise
