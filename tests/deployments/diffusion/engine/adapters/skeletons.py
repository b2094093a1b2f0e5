"""Models on the meta device: their layers' names and shapes, without weights."""

from pathlib import Path

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from configs.families import FamilyName

TEXT_ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


def demo_skeletons(models: Path, family: FamilyName) -> dict[str, nn.Module]:
    """The adaptable models of a demo base; of sd15 also the UNet with motion modules."""
    folder = models / family
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        skeletons: dict[str, nn.Module] = {"unet": unet}
        for name, kind in TEXT_ENCODERS.items():
            if (folder / name).exists():
                skeletons[name] = kind(CLIPTextConfig.from_pretrained(folder / name))
        if family == "sd15":
            config = MotionAdapter.load_config(models / "motion-adapter" / "sd15")
            motion = MotionAdapter.from_config(config)
            skeletons["motion_unet"] = UNetMotionModel.from_unet2d(unet, motion, load_weights=False)
    return skeletons
