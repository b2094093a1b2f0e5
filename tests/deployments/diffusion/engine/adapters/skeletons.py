"""Models on the meta device: their layers' names and shapes, without weights."""

from pathlib import Path

import torch
from diffusers import MotionAdapter
from torch import nn

from configs.families import FamilyName
from deployments.diffusion.engine.models.skeletons import skeletons_of


def demo_skeletons(models: Path, family: FamilyName) -> dict[str, nn.Module]:
    """The adaptable models of a demo base; of sd15 also the UNet with motion modules."""
    found = skeletons_of(models / family, family)
    if family != "sd15":
        return found.adaptable
    config = MotionAdapter.load_config(models / "motion-adapter" / "sd15")
    with torch.device("meta"):
        motion = MotionAdapter.from_config(config)
    return {**found.adaptable, "motion_unet": found.moving(motion)}
