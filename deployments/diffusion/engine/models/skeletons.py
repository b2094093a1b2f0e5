"""Models without weights, on torch's device `meta`: names and shapes of their layers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    MotionAdapter,
    T2IAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
)

from configs.families import FAMILIES, FamilyName
from configs.published import Config, geometry
from deployments.diffusion.engine.models.checkpoints.identity import TEXT_ENCODERS

Model = TypeVar(
    "Model",
    UNet2DConditionModel,
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    T2IAdapter,
)
_TEXT_KINDS = (CLIPTextModel, CLIPTextModelWithProjection)


def on_meta(kind: type[Model], config: Config) -> Model:
    """A model of a configuration."""
    with torch.device("meta"):
        model: Model = kind.from_config(config)
    return model


def text_encoder_on_meta(index: int, config: Config) -> PreTrainedModel:
    """The first or the second text encoder of a family."""
    with torch.device("meta"):
        model: PreTrainedModel = _TEXT_KINDS[index](CLIPTextConfig(**config))
    return model


@dataclass(frozen=True, eq=False)
class Skeletons:
    """The models of one checkpoint that other files may fit.

    Attributes:
        text_encoders: one, or for sdxl two.
    """

    unet: UNet2DConditionModel
    text_encoders: tuple[PreTrainedModel, ...]

    @property
    def adaptable(self) -> dict[str, nn.Module]:
        """Those that adapters may change, by name."""
        named = zip(TEXT_ENCODERS, self.text_encoders, strict=False)
        return {"unet": self.unet, **dict(named)}

    def moving(self, adapter: MotionAdapter | None = None) -> nn.Module:
        """The UNet with motion layers; `None`: those of any published motion adapter, which are
        everywhere that some have one."""
        with torch.device("meta"):
            adapter = adapter or MotionAdapter(
                block_out_channels=tuple(self.unet.config.block_out_channels),
                use_motion_mid_block=True,
            )
            moving: nn.Module = UNetMotionModel.from_unet2d(self.unet, adapter, load_weights=False)
        return moving


def skeletons(family: FamilyName, *, tiny: bool = False) -> Skeletons:
    """The models of a family's published base."""
    shapes = geometry(family, tiny=tiny)
    return _skeletons(shapes.unet, shapes.text_encoders)


def skeletons_of(folder: Path, family: FamilyName) -> Skeletons:
    """The models that a diffusers folder describes. Raises `OSError` or `ValueError` if it
    describes none."""
    parts = ("unet", *TEXT_ENCODERS[: FAMILIES[family].text_encoders])
    unet, *encoders = (json.loads((folder / part / "config.json").read_text()) for part in parts)
    return _skeletons(unet, encoders)


def _skeletons(unet: Config, text_encoders: Sequence[Config]) -> Skeletons:
    encoders = (text_encoder_on_meta(*each) for each in enumerate(text_encoders))
    return Skeletons(on_meta(UNet2DConditionModel, unet), tuple(encoders))
