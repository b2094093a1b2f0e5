"""Files that stand beside a checkpoint: what each is, where it goes, and the families that read it.

Each is read as a model of the family reads it, for a UNet without weights.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch

from configs.app import ControlArgs, IpAdapterArgs
from configs.families import FamilyName
from deployments.diffusion.engine.adapters.contents import Contents
from deployments.diffusion.engine.adapters.files import LoraError, lora_file
from deployments.diffusion.engine.models.checkpoints.identity import (
    CONTROLNET,
    IP_ADAPTER,
    MOTION_ADAPTER,
    T2I_ADAPTER,
    TEXTUAL_INVERSION,
)
from deployments.diffusion.engine.models.controls.controls import read_controls
from deployments.diffusion.engine.models.embeddings import read_embedding
from deployments.diffusion.engine.models.ip_adapter import load_ip_adapters
from deployments.diffusion.engine.models.motion.file import read_motion_adapter
from deployments.diffusion.engine.models.motion.motion import check_fits
from deployments.diffusion.engine.models.skeletons import Skeletons, skeletons

_NAME = "depth"  # of a control: one of the modes of a ControlNet-Union, too
_DTYPE = torch.float16


def refusal(kind: str, path: Path, family: FamilyName) -> str | None:
    """Why a model of a family would not start with a file; `None`: it would."""
    try:
        READERS[kind](path, family)
    except (LoraError, OSError, ValueError) as error:
        # What it would be called in a configuration says nothing here.
        said = str(error).removeprefix(f"controls.{_NAME}: ")
        return said.removeprefix(f"IP-Adapter {_NAME!r} ({path}): ")
    return None


def _control(path: Path, family: FamilyName) -> None:
    read_controls({_NAME: ControlArgs(source=str(path))}, None, models_of(family).unet, _DTYPE)


def _ip_adapter(path: Path, family: FamilyName) -> None:
    args = IpAdapterArgs(adapter=str(path), image_encoder="any")
    load_ip_adapters({_NAME: args}, models_of(family).unet)


def _motion_adapter(path: Path, family: FamilyName) -> None:
    unet = models_of(family).unet
    check_fits(read_motion_adapter(str(path), unet, None, _DTYPE), unet)


def _embedding(path: Path, family: FamilyName) -> None:
    widths = [encoder.config.hidden_size for encoder in models_of(family).text_encoders]
    read_embedding(path.stem, lora_file(path), widths)


READERS: Mapping[str, Callable[[Path, FamilyName], None]] = {
    CONTROLNET: _control,
    T2I_ADAPTER: _control,
    IP_ADAPTER: _ip_adapter,
    MOTION_ADAPTER: _motion_adapter,
    TEXTUAL_INVERSION: _embedding,
}


@cache
def motion_contents(family: FamilyName) -> Contents:
    """Of adapters for motion layers."""
    return Contents({"unet": models_of(family).moving()}, words=None)


@cache
def models_of(family: FamilyName) -> Skeletons:
    """Of its published base."""
    return skeletons(family)
