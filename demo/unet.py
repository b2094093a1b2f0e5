"""Small UNets of the three families: their real block types, fewer and narrower.

A random network knows nothing of noise, and 50 sampling steps would blow its mistakes up. So
one path is set by hand: the first eight channels carry the latents, plus and minus, through
the outermost skip connection to the output. There they give back a share of the normalised
input, which is what the best guess of the noise is when nothing else is known. All other
weights are random and add to that guess.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from demo.init import fill, generator

SAMPLE_SIZE = 16  # latent side; the default picture is 8 times as wide
LATENT_CHANNELS = 4
INPAINTING_CHANNELS = 2 * LATENT_CHANNELS + 1  # latents, mask, masked latents
NORM_GROUPS = 8
WIDTHS = (32, 32, 48, 48)
NOISE_SHARE = 0.85  # of the normalised latents in the output
MASK_GAIN = 4.0  # of the first layer, for the mask and the masked latents
GAINS = {
    "conv_out": 0.45,
    "time_emb": 1.7,
    "add_embedding": 1.7,
    "attn2.to_q": 1.8,
    "attn2.to_k": 1.8,
    "attn2.to_v": 1.5,
    "attn2.to_out": 1.5,
    "conv2": 0.7,
}
ADDITION_TIME_EMBED_DIM = 8


def sd15_unet(cross_attention_dim: int, scale: int, in_channels: int) -> UNet2DConditionModel:
    """SD 1.5: convolutions project into attention; `attention_head_dim` counts the heads."""
    return UNet2DConditionModel(
        sample_size=SAMPLE_SIZE,
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        down_block_types=(
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        up_block_types=(
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        block_out_channels=tuple(width * scale for width in WIDTHS),
        layers_per_block=1,
        norm_num_groups=NORM_GROUPS,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=8,
    )


def sd21_unet(cross_attention_dim: int, scale: int, in_channels: int) -> UNet2DConditionModel:
    """SD 2.1 base: linear projections, a number of heads for each level."""
    return UNet2DConditionModel(
        sample_size=SAMPLE_SIZE,
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        down_block_types=(
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        up_block_types=(
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        block_out_channels=tuple(width * scale for width in WIDTHS),
        layers_per_block=1,
        norm_num_groups=NORM_GROUPS,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=[2 * scale, 2 * scale, 3 * scale, 3 * scale],
        use_linear_projection=True,
    )


def sdxl_unet(
    cross_attention_dim: int, pooled_dim: int, scale: int, in_channels: int
) -> UNet2DConditionModel:
    """SDXL: three levels, no attention on the first, size and pooled text as extra conditions."""
    return UNet2DConditionModel(
        sample_size=SAMPLE_SIZE,
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=tuple(width * scale for width in WIDTHS[:3]),
        layers_per_block=1,
        norm_num_groups=NORM_GROUPS,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=[2 * scale, 2 * scale, 3 * scale],
        transformer_layers_per_block=[1, 1, 2],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=ADDITION_TIME_EMBED_DIM,
        projection_class_embeddings_input_dim=6 * ADDITION_TIME_EMBED_DIM + pooled_dim,
    )


def unet_of(base_folder: Path) -> UNet2DConditionModel:
    """A UNet shaped like that of the base in `base_folder`, with any weights."""
    config = UNet2DConditionModel.load_config(base_folder, subfolder="unet", local_files_only=True)
    # The constructor draws weights: leave the caller's state alone.
    with torch.random.fork_rng(devices=[]):
        unet: UNet2DConditionModel = UNet2DConditionModel.from_config(config)
    return unet


def fill_unet(unet: UNet2DConditionModel, name: str) -> None:
    """Random weights of the base's own seed, and the path by hand."""
    fill(unet, generator(name, "unet"), GAINS)
    with torch.no_grad():
        unet.conv_in.weight[:, LATENT_CHANNELS:] *= MASK_GAIN
    carry_latents(unet)


@torch.no_grad()
def carry_latents(unet: UNet2DConditionModel) -> None:
    """Let the first channels carry the latents, plus and minus, from input to output.

    silu(x) - silu(-x) = x, so the last activation does no harm to them.
    """
    block = unet.up_blocks[-1]
    resnet = block.resnets[-1]
    carried = 2 * LATENT_CHANNELS
    width = unet.conv_in.out_channels
    # Plus and minus side by side: a norm group holds both, so that its mean is zero.
    identity = torch.eye(LATENT_CHANNELS)
    signed = torch.stack([identity, -identity], dim=1).reshape(carried, LATENT_CHANNELS)

    unet.conv_in.weight[:carried] = 0
    unet.conv_in.weight[:carried, :LATENT_CHANNELS, 1, 1] = signed
    # The skip connection's channels come after those of the level below.
    skip = slice(width, width + carried)
    resnet.conv_shortcut.weight[:carried] = 0
    resnet.conv_shortcut.weight[:carried, skip, 0, 0] = torch.eye(carried)
    # Nothing else may write on them.
    writers = [resnet.conv2]
    if getattr(block, "has_cross_attention", False):
        writers.append(block.attentions[-1].proj_out)
    for layer in writers:
        layer.weight[:carried] = 0
    for layer in (unet.conv_in, resnet.conv_shortcut, *writers):
        layer.bias[:carried] = 0
    unet.conv_out.weight[:, :carried] = 0
    unet.conv_out.weight[:, :carried, 1, 1] = NOISE_SHARE * signed.T
