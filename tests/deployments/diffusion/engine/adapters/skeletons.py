"""Models on the meta device: their layers' names and shapes, without weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.published import geometry
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


def full_size_skeletons(family: FamilyName) -> dict[str, nn.Module]:
    """The models of a published base."""
    published = geometry(family)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(published.unet))
        encoders = [
            kind(_text_config(config))
            for kind, config in zip(TEXT_ENCODERS.values(), published.text_encoders, strict=False)
        ]
    return {"unet": unet, **dict(zip(TEXT_ENCODERS, encoders, strict=False))}


def _text_config(config: Mapping[str, object]) -> CLIPTextConfig:
    return CLIPTextConfig(**{key: config[key] for key in config if key != "architectures"})
