"""Stable Diffusion's noise schedule and the arithmetic of one noised latent.

x_t = alpha_t x_0 + sigma_t eps, alpha_t^2 + sigma_t^2 = 1, for t of 0 to 999.
"""

import torch
from torch import Tensor

STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
SNR_CAP = 5.0


def alphas_cumprod() -> Tensor:
    """alpha_t^2, (1000,) float32: `scaled_linear` of diffusers."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, STEPS) ** 2
    return torch.cumprod(1 - betas, 0)


class Schedule:
    """alpha and sigma of timesteps (B,), each shaped to multiply latents of `ndim` dimensions."""

    def __init__(self, device: torch.device, ndim: int = 4) -> None:
        squares = alphas_cumprod().to(device)
        self._alphas, self._sigmas = squares.sqrt(), (1 - squares).sqrt()
        self._ones = (1,) * (ndim - 1)

    def alpha(self, t: Tensor) -> Tensor:
        """alpha_t of timesteps (B,), as (B, 1, 1, 1)."""
        return self._alphas[t].view(-1, *self._ones)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_t, likewise."""
        return self._sigmas[t].view(-1, *self._ones)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        return self.alpha(t) * x0 + self.sigma(t) * noise

    def x0(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The x_0 that `eps` at x_t speaks for."""
        return (x - self.sigma(t) * eps) / self.alpha(t)

    def move(self, x: Tensor, eps: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """From x_t to x_s along `eps`: a DDIM step, and TCD's trajectory consistency function."""
        return self.alpha(s) * self.x0(x, eps, t) + self.sigma(s) * eps

    def weight(self, t: Tensor) -> Tensor:
        """(B,): min-SNR-5 weight of the noise's squared error (arXiv 2303.09556)."""
        snr = (self._alphas[t] / self._sigmas[t]) ** 2
        return snr.clamp(max=SNR_CAP) / snr
