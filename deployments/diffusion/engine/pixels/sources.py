"""Pictures to start from, as latents: image-to-image and both kinds of inpainting.

A picture is encoded once a job; what is random about it is drawn for each of the job's images.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deployments.contracts.jobs import Pixels
from deployments.diffusion.engine.models.placing import to_device
from deployments.diffusion.engine.models.vae import Posterior, Vae
from deployments.diffusion.engine.policy.spec import LATENT_SCALE, Source

HALF = 128  # of 255: from here on a mask counts as "make anew", as diffusers binarises it


@dataclass(frozen=True)
class SourceLatents:
    """A start picture on the device. All tensors are (C, h, w) in latent pixels; of a video, in
    which each frame starts from it, `image` and `noise` are (C, frames, h, w).

    Attributes:
        image: the picture's latents; zeros where nothing of it is left.
        noise: what it is noised with, at the start and wherever it is put back.
        mask: (1, h, w), 1 where it is made anew; `None` without a mask.
        masked_image: latents of the picture with the hole grey; for 9-channel UNets.
    """

    image: Tensor
    noise: Tensor
    mask: Tensor | None
    masked_image: Tensor | None

    @property
    def beside(self) -> Tensor:
        """(5, h, w): what a 9-channel UNet sees beside the latents. Needs a mask."""
        assert self.mask is not None
        assert self.masked_image is not None
        return torch.cat([self.mask, self.masked_image])

    def blended(self, latents: Tensor, alpha_prev: float, sigma_prev: float) -> Tensor:
        """`latents` in the hole, the noised picture around it (4-channel inpainting)."""
        if self.mask is None:
            return latents
        known = alpha_prev * self.image + sigma_prev * self.noise
        return (1 - self.mask) * known + self.mask * latents


@dataclass(frozen=True)
class EncodedSource:
    """A start picture as a VAE sees it: what all images of a job share.

    Attributes:
        shape: (C, h, w) of its latents.
        image: `None` where the picture itself is not needed.
        mask: `None` without one.
        masked_image: `None` where no UNet sees it.
    """

    vae: Vae
    dtype: torch.dtype
    shape: tuple[int, int, int]
    image: Posterior | None
    mask: Tensor | None
    masked_image: Posterior | None

    @property
    def encoded(self) -> int:
        """How many pictures the VAE encoded."""
        return sum(one is not None for one in (self.image, self.masked_image))

    def draw(self, generator: torch.Generator, frames: int | None = None) -> SourceLatents:
        """One image's or video's start, drawn from its generator in diffusers' order: the
        picture's posterior, of each frame, the noise, the masked picture's posterior."""
        device = self.vae.model.device
        image = None if self.image is None else self._drawn(self.image, generator, frames)
        noise = torch.randn((frames or 1, *self.shape), generator=generator, dtype=self.dtype)
        masked = None
        if self.masked_image is not None:
            masked = self._drawn(self.masked_image, generator)
        elif self.mask is not None:  # which diffusers draws for every UNet
            torch.randn((1, *self.shape), generator=generator, dtype=self.vae.dtype)
        noise = _row(to_device(noise, device), frames)
        if image is None:
            image = torch.zeros_like(noise)
        return SourceLatents(image, noise, self.mask, masked)

    def _drawn(
        self, posterior: Posterior, generator: torch.Generator, frames: int | None = None
    ) -> Tensor:
        mean, std = posterior
        shape = (frames or 1, *self.shape)
        drawn = torch.randn(shape, generator=generator, dtype=mean.dtype)
        sample = (mean + std * to_device(drawn, mean.device)).to(self.dtype)
        return _row(self.vae.scaled(sample), frames)


def _row(latents: Tensor, frames: int | None) -> Tensor:
    """The latents of an image, from a batch of one, or of a video, from its frames."""
    return latents[0] if frames is None else latents.movedim(0, 1)


def encode_source(
    vae: Vae, source: Source, dtype: torch.dtype, *, whole: bool = True, masked: bool = False
) -> EncodedSource:
    """Encodes a start picture.

    Args:
        dtype: of the latents.
        whole: the picture itself is needed; else nothing will be drawn for it, as for a 9-channel
            UNet that starts from pure noise.
        masked: what a mask leaves of it is needed: a 9-channel UNet sees that.
    """
    device = vae.model.device
    pixels = _pixels(source.pixels, device)
    height, width = (side // LATENT_SCALE for side in source.pixels.shape[:2])
    shape = (vae.latent_channels, height, width)
    image = vae.posterior(pixels) if whole else None
    if source.mask is None:
        return EncodedSource(vae, dtype, shape, image, None, None)
    mask = to_device(torch.from_numpy(source.mask.copy()), device)[None, None].ge(HALF).float()
    left = vae.posterior(pixels * (mask < 0.5)) if masked else None
    small = F.interpolate(mask, size=(height, width))[0].to(dtype)
    return EncodedSource(vae, dtype, shape, image, small, left)


def _pixels(pixels: Pixels, device: torch.device) -> Tensor:
    """(1, 3, height, width) in [-1, 1], channels last in memory, as diffusers has it: in another
    layout convolutions round otherwise, and a VAE makes more of it."""
    tensor = to_device(torch.from_numpy(pixels[None].copy()), device)
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1
