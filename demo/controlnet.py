"""Writes random ControlNets that fit a base folder."""

from pathlib import Path

import torch
from diffusers import ControlNetModel

from demo.init import fill, generator
from demo.unet import LATENT_CHANNELS, unet_of

KINDS = ("depth", "canny")
EMBEDDING_WIDTHS = (8, 16, 16, 32)  # the real ones: 16, 32, 96, 256
# The control map outweighs the latents and the timestep, so that another map is another answer.
GAINS = {
    "controlnet_cond_embedding": 2.5,
    "controlnet_down_blocks": 0.8,
    "controlnet_mid_block": 0.8,
    "conv_in": 0.3,
    "time_emb": 0.5,
    "attn2": 1.5,
    "conv2": 0.7,
}


def write_controlnet(kind: str, family: str, base_folder: Path, folder: Path) -> None:
    """Write the ControlNet for control maps of `kind` (one of `KINDS`) to `folder`.

    Its configuration is that of the UNet in `base_folder`, a base of `family`. Raises
    ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    # The constructor draws weights, which are then overwritten: leave the caller's state alone.
    with torch.random.fork_rng(devices=[]):
        controlnet = ControlNetModel.from_unet(
            unet_of(base_folder),
            conditioning_embedding_out_channels=EMBEDDING_WIDTHS,
            load_weights_from_unet=False,
        )
    fill(controlnet, generator("controlnet", kind, family), GAINS)
    spare_the_latents(controlnet)
    controlnet.save_pretrained(folder)


@torch.no_grad()
def spare_the_latents(controlnet: ControlNetModel) -> None:
    """Add nothing to the channels in which the UNet carries the latents (`demo.unet`)."""
    layer = controlnet.controlnet_down_blocks[0]
    layer.weight[: 2 * LATENT_CHANNELS] = 0
    layer.bias[: 2 * LATENT_CHANNELS] = 0
