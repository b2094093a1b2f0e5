"""What makes videos: AnimateDiff's motion layers in a UNet of their own."""

from dataclasses import dataclass

from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

from deployments.diffusion.engine.models.free_noise import FreeNoise, see_in_windows


@dataclass(frozen=True)
class Motion:
    """The models of videos.

    Attributes:
        unet: the UNet of images with motion layers in it, a copy of its own.
        free_noise: how it makes long videos.
    """

    unet: UNetMotionModel
    free_noise: FreeNoise


def with_motion(unet: UNet2DConditionModel, adapter: MotionAdapter) -> Motion:
    """A UNet of images with the motion layers of an adapter, as a copy."""
    moving = UNetMotionModel.from_unet2d(unet, adapter)
    free_noise = FreeNoise(int(adapter.config.motion_max_seq_length))
    see_in_windows(moving, free_noise)
    return Motion(moving, free_noise)
