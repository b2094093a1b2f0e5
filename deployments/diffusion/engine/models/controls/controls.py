"""What requests may name in `controls`: by type, a ControlNet or a T2I-Adapter."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import ControlNetUnionModel, T2IAdapter, UNet2DConditionModel

from configs.app import ControlArgs
from configs.sources import fetch
from configs.union_modes import UNION_MODES
from deployments.contracts.cards import ControlKind
from deployments.diffusion.engine.adapters.files import LoraError
from deployments.diffusion.engine.models.controls.controlnets import ControlNet, read_controlnet
from deployments.diffusion.engine.models.controls.files import ControlFile, open_control
from deployments.diffusion.engine.models.controls.t2i_adapters import read_t2i_adapter


@dataclass(frozen=True)
class NetType:
    """A ControlNet as a control type.

    Attributes:
        source: of its weights. Types of one source are one net.
        mode: of a ControlNet-Union: which of its modes.
    """

    source: str
    net: ControlNet
    mode: int | None = None


@dataclass(frozen=True)
class Controls:
    """A model's controls, by type.

    Attributes:
        nets: run with each step.
        adapters: run once, when a row is made ready.
        kinds: what each of both is.
    """

    nets: Mapping[str, NetType]
    adapters: Mapping[str, T2IAdapter]
    kinds: Mapping[str, ControlKind]

    @property
    def models(self) -> dict[ControlNet | T2IAdapter, str]:
        """Each network, with a type that it serves."""
        nets: dict[ControlNet | T2IAdapter, str] = {
            one.net: kind for kind, one in self.nets.items()
        }
        return nets | {adapter: kind for kind, adapter in self.adapters.items()}


def read_controls(
    args: Mapping[str, ControlArgs],
    variant: str | None,
    unet: UNet2DConditionModel,
    dtype: torch.dtype,
) -> Controls:
    """Reads a model's controls, each source once, to the CPU.

    Args:
        args: by type.
        variant: of weights in folders, where they are published in it.

    Raises `SourceError` if one cannot be fetched, and `ValueError`, which names its type, if it
    cannot be read or was made for another UNet, or if its mode is not a mode of it.
    """
    nets: dict[str, NetType] = {}
    adapters: dict[str, T2IAdapter] = {}
    kinds: dict[str, ControlKind] = {}
    files: dict[str, ControlFile] = {}
    read: dict[str, ControlNet | T2IAdapter] = {}
    for name, control in args.items():
        source = control.source
        try:
            if source not in read:
                files[source] = open_control(fetch(source, variant=variant), variant)
                read[source] = _read(files[source], unet, dtype)
            model, kinds[name] = read[source], files[source].kind
            mode = _mode(name, control, model)
        except (LoraError, OSError, ValueError) as error:
            raise ValueError(f"controls.{name}: {error}") from error
        except KeyError as error:
            raise ValueError(f"controls.{name}: {files[source].name} lacks {error}") from error
        if isinstance(model, T2IAdapter):
            adapters[name] = model
        else:
            nets[name] = NetType(source, model, mode)
    return Controls(nets, adapters, kinds)


def _read(
    file: ControlFile, unet: UNet2DConditionModel, dtype: torch.dtype
) -> ControlNet | T2IAdapter:
    if file.kind == "t2i-adapter":
        return read_t2i_adapter(file, unet, dtype)
    return read_controlnet(file, unet, dtype)


def _mode(name: str, control: ControlArgs, model: ControlNet | T2IAdapter) -> int | None:
    """Which mode of a union a type means."""
    if not isinstance(model, ControlNetUnionModel):
        if control.mode is not None:
            raise ValueError("mode is of a ControlNet-Union, which this is not")
        return None
    count = int(model.config.num_control_type)
    known = {mode: index for mode, index in UNION_MODES.items() if index < count}
    asked = name if control.mode is None else control.mode
    for mode, index in known.items():
        if mode == asked:
            return index
    raise ValueError(
        f"it is a ControlNet-Union, which has no mode {asked!r}; mode must be one of "
        + ", ".join(known)
    )
