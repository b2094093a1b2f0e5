"""Models without weights, on torch's device `meta`: names and shapes of their layers."""

from typing import TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    T2IAdapter,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from configs.families import FamilyName
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


def text_encoder_on_meta(index: int, config: Config) -> nn.Module:
    """The first or the second text encoder of a family."""
    with torch.device("meta"):
        model: nn.Module = _TEXT_KINDS[index](CLIPTextConfig(**config))
    return model


def skeletons(family: FamilyName, *, tiny: bool = False) -> dict[str, nn.Module]:
    """The models of a family's published base that adapters may change, by name."""
    shapes = geometry(family, tiny=tiny)
    models: dict[str, nn.Module] = {"unet": on_meta(UNet2DConditionModel, shapes.unet)}
    for index, config in enumerate(shapes.text_encoders):
        models[TEXT_ENCODERS[index]] = text_encoder_on_meta(index, config)
    return models
