"""What makes videos: AnimateDiff's motion layers in a UNet of their own."""

from dataclasses import dataclass, replace

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

from deployments.diffusion.engine.models.image_attention import ImageAttention
from deployments.diffusion.engine.models.motion.file import read_motion_adapter
from deployments.diffusion.engine.models.motion.free_noise import FreeNoise, see_in_windows


@dataclass(frozen=True)
class Motion:
    """The models of videos.

    Attributes:
        unet: the UNet of images with motion layers in it, a copy of its own.
        free_noise: how it makes long videos.
        image_attention: the UNet's to the pictures that IP-Adapters read; `None`: there are none.
    """

    unet: UNetMotionModel
    free_noise: FreeNoise
    image_attention: ImageAttention | None = None

    def seeing(self, as_images: ImageAttention) -> "Motion":
        """With attention to pictures in the same layers as the UNet of images."""
        return replace(self, image_attention=ImageAttention(self.unet, as_images.layers))


def load_motion(
    source: str, unet: UNet2DConditionModel, variant: str | None, dtype: torch.dtype
) -> Motion:
    """A UNet of images with the motion layers of an adapter, as a copy.

    Raises `ValueError` naming `motion_adapter` if it is none, or not for such a UNet.
    """
    try:
        adapter = read_motion_adapter(source, unet, variant, dtype)
        check_fits(adapter, unet)
    except ValueError as error:
        raise ValueError(f"motion_adapter {source}: {error}") from error
    moving = UNetMotionModel.from_unet2d(unet, adapter)
    if unet.config.addition_embed_type is not None:  # sdxl's, which diffusers leaves as drawn
        moving.add_embedding.load_state_dict(unet.add_embedding.state_dict())
    free_noise = FreeNoise(int(adapter.config.motion_max_seq_length))
    see_in_windows(moving, free_noise)
    return Motion(moving, free_noise)


def check_fits(adapter: MotionAdapter, unet: UNet2DConditionModel) -> None:
    """Raises `ValueError` if a motion adapter is not for such a UNet."""
    if unet.config.in_channels != unet.config.out_channels:
        raise ValueError("the model only inpaints, and makes no videos")
    if adapter.config.conv_in_channels is not None:
        raise ValueError("it wants a picture beside the latents (PIA), which is not made here")
    theirs, ours = (tuple(config.block_out_channels) for config in (adapter.config, unet.config))
    if theirs != ours:
        raise ValueError(
            f"its layers have {_listed(theirs)} channels, this model's blocks {_listed(ours)}: is "
            "it of another family?"
        )
    layers = _each(adapter.config.motion_layers_per_block, len(theirs))
    if layers != _each(unet.config.layers_per_block, len(ours)):
        raise ValueError(
            f"it has {_listed(layers)} motion layers in its blocks, and this model's blocks have "
            f"{_listed(_each(unet.config.layers_per_block, len(ours)))} layers"
        )


def _each(count: int | list[int] | tuple[int, ...], blocks: int) -> tuple[int, ...]:
    """Of each block, where a configuration may say it once for all."""
    return (count,) * blocks if isinstance(count, int) else tuple(count)


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
