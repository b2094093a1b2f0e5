"""A small AutoencoderKL with the real one's four levels, 8 pixels to a latent."""

import torch
from diffusers import AutoencoderKL

from demo.init import fill, generator

LATENT_CHANNELS = 4
WIDTHS = (8, 16, 16, 32)
LOG_VARIANCE = -4.0
GAINS = {
    "encoder.conv_out": 1.0,
    "decoder.conv_out": 0.9,
}


def build_vae(name: str, *, scaling_factor: float, force_upcast: bool) -> AutoencoderKL:
    """An autoencoder whose latents, times `scaling_factor`, are about unit normal."""
    levels = len(WIDTHS)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=128,
        scaling_factor=scaling_factor,
        force_upcast=force_upcast,
    )
    fill(vae, generator(name, "vae"), GAINS)
    scale_latents(vae, scaling_factor)
    return vae


@torch.no_grad()
def scale_latents(vae: AutoencoderKL, scaling_factor: float) -> None:
    """Set the encoder's mean to deviate by 1 / `scaling_factor`, with little variance."""
    convolution = vae.encoder.conv_out
    # The activation before it halves the signal, more or less.
    convolution.weight[:LATENT_CHANNELS] *= 1.7 / scaling_factor
    convolution.weight[LATENT_CHANNELS:] *= 0.1
    convolution.bias[LATENT_CHANNELS:] = LOG_VARIANCE
    for layer in (vae.quant_conv, vae.post_quant_conv):
        layer.weight.copy_(torch.eye(layer.out_channels)[:, :, None, None])
        layer.bias.zero_()
