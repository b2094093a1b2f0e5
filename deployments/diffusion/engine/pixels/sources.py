"""Pictures to start from, as latents: image-to-image and both kinds of inpainting."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from deployments.contracts.jobs import Pixels
from deployments.diffusion.engine.policy.spec import LATENT_SCALE, Source

HALF = 128  # of 255: from here on a mask counts as "make anew", as diffusers binarises it


@dataclass(frozen=True)
class SourceLatents:
    """A start picture on the device. All tensors are (C, h, w) in latent pixels.

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

    def blended(self, latents: Tensor, alpha_prev: float, sigma_prev: float) -> Tensor:
        """`latents` in the hole, the noised picture around it (4-channel inpainting)."""
        if self.mask is None:
            return latents
        known = alpha_prev * self.image + sigma_prev * self.noise
        return (1 - self.mask) * known + self.mask * latents


def encode_source(
    vae: AutoencoderKL,
    source: Source,
    generator: torch.Generator,
    dtype: torch.dtype,
    *,
    only_masked: bool = False,
) -> SourceLatents:
    """Encodes a start picture, drawing from the row's generator in diffusers' order: the
    picture's posterior, the noise, the masked picture's posterior.

    Args:
        only_masked: the picture itself is not needed, and nothing is drawn for it: a 9-channel
            UNet starts from pure noise.
    """
    device = vae.device
    pixels = _pixels(source.pixels).to(device)
    height, width = (side // LATENT_SCALE for side in source.pixels.shape[:2])
    shape = (int(vae.config.latent_channels), height, width)
    image = (
        torch.zeros(shape, dtype=dtype, device=device)
        if only_masked
        else _posterior(vae, pixels, generator, dtype)
    )
    noise = torch.randn(shape, generator=generator, dtype=dtype).to(device)
    if source.mask is None:
        return SourceLatents(image, noise, None, None)
    mask = torch.from_numpy(source.mask.copy())[None, None].ge(HALF).float().to(device)
    masked = _posterior(vae, pixels * (mask < 0.5), generator, dtype)
    small = F.interpolate(mask, size=(height, width))[0].to(dtype)
    return SourceLatents(image, noise, small, masked)


def _pixels(pixels: Pixels) -> Tensor:
    """(1, 3, height, width) in [-1, 1], channels last in memory, as diffusers has it: in another
    layout convolutions round otherwise, and a VAE makes more of it."""
    return torch.from_numpy(pixels[None].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def _posterior(
    vae: AutoencoderKL, pixels: Tensor, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """A sample of the VAE's posterior, scaled: (C, h, w)."""
    posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    mean: Tensor = posterior.mean
    drawn = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
    sample: Tensor = (mean + posterior.std * drawn).to(dtype)[0]
    return sample * float(vae.config.scaling_factor)
