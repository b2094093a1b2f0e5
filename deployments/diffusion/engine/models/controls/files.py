"""Control files as people have them: what each is, and its tensors by diffusers' names."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from deployments.contracts.cards import ControlKind
from deployments.diffusion.engine.adapters.files import lora_file
from deployments.diffusion.engine.adapters.lineage import looks_like
from deployments.diffusion.engine.adapters.names import Role, split
from deployments.diffusion.engine.models.checkpoints.header import Shape, read_header
from deployments.diffusion.engine.models.controls.names import diffusers_names

Shapes = Mapping[str, Shape]

# What steers a UNet too, and is not read, by what only its tensors are called.
_OTHER_CONTROLS = {
    r"^lllite_": "a ControlNet-LLLite",
    r"^lora_controlnet$": "a Control-LoRA, which is half of a ControlNet",
    r"base_to_ctrl|ctrl_to_base|control_to_base|^enc_zero_convs": "a ControlNet-XS",
    r"motion_modules": "part of AnimateDiff",
    r"^difference$": "the difference between a ControlNet and a UNet",
    r"^controlnet_(x_embedder|blocks)|^(double|transformer)_blocks": "one for other networks",
    r"\.skep\.|\.down_opt\.op\.": "a T2I-Adapter of the first version",
}
_OTHERS = {
    r"^(image_proj|ip_adapter)\.": "an IP-Adapter",
    r"^(model\.diffusion_model|first_stage_model)\.": "a checkpoint",
    r"^(up_blocks|output_blocks)\.": "a UNet",
    r"^(encoder|decoder)\.": "a VAE",
}
_UNION = "task_embedding"
_FIRST_OF_NET = "controlnet_cond_embedding.conv_in.weight"
_FIRST_OF_ADAPTER = re.compile(r"adapter\.(conv_in|body\.0\.in_conv)\.weight")


@dataclass(frozen=True)
class ControlFile:
    """A control's weights: a single safetensors file, or those of a diffusers folder.

    Attributes:
        name: of the file or the folder.
        kind: what it is.
        shapes: of its tensors, by diffusers' names.
        folder: whose `config.json` describes it; `None`: its shapes do.
    """

    name: str
    kind: ControlKind
    shapes: Shapes
    folder: Path | None
    _files: tuple[Path, ...]
    _names: Mapping[str, str]

    def count(self, pattern: str) -> int:
        """How many numbers occur in names where a pattern has its group."""
        return len({found[1] for name in self.shapes if (found := re.match(pattern, name))})

    def load(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Gives a model that has none its weights, in `dtype`, on the CPU. Raises `ValueError` if
        they are not the model's."""
        needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name in sorted(needed.keys() | self.shapes.keys()):
            if name not in self.shapes:
                raise ValueError(f"{self.name} lacks {name!r}")
            if name not in needed:
                raise ValueError(f"{self.name} holds {name!r}, which is no part of such a model")
            if needed[name] != self.shapes[name]:
                shapes = f"{self.shapes[name]}; {needed[name]} is needed"
                raise ValueError(f"{self.name}: {name!r} is {shapes}")
        tensors: dict[str, Tensor] = {}
        for file in self._files:
            with safe_open(file, "pt") as content:
                for name in content.offset_keys():
                    if name in self._names:
                        tensors[self._names[name]] = content.get_tensor(name).to(dtype)
        model.load_state_dict(tensors, assign=True)


def open_control(path: Path, variant: str | None) -> ControlFile:
    """Looks at a control's file or folder; no weights are read yet.

    Args:
        variant: of a folder's weights, where they are published in it.

    Raises `ValueError` or `LoraError` if it is nothing that can be read here.
    """
    folder = path if (path / "config.json").is_file() else None
    files = [lora_file(path)] if folder is None else _weights(path, variant)
    found: dict[str, Shape] = {}
    for file in files:
        found |= read_header(file).shapes
    names = diffusers_names(found)
    shapes = {ours: found[name] for name, ours in names.items()}
    name = (folder or files[0]).name
    if len(shapes) < len(names):
        raise ValueError(f"{name} holds tensors twice, under names of two kinds")
    return ControlFile(name, _kind(name, found, shapes), shapes, folder, tuple(files), names)


def _weights(folder: Path, variant: str | None) -> list[Path]:
    """A diffusers folder's weights: of the variant, or else the plain ones."""
    shard = r"(-\d+-of-\d+)?"
    for tried in (variant, None):
        end = "" if tried is None else rf"\.{re.escape(tried)}{shard}"
        pattern = re.compile(rf"diffusion_pytorch_model{shard}{end}\.safetensors")
        files = sorted(file for file in folder.iterdir() if pattern.fullmatch(file.name))
        if files:
            return files
    raise ValueError(f"{folder.name} holds no diffusion_pytorch_model.safetensors")


def _kind(file: str, written: Collection[str], shapes: Shapes) -> ControlKind:
    """What a file is, by its tensors: as their names are written, and by diffusers'."""
    other = _first_match(_OTHER_CONTROLS, [*written, *shapes])
    if other is None:
        if _UNION in shapes and _FIRST_OF_NET in shapes:
            return "controlnet-union"
        if _FIRST_OF_NET in shapes and "controlnet_mid_block.weight" in shapes:
            return "controlnet"
        if any(map(_FIRST_OF_ADAPTER.fullmatch, shapes)):
            return "t2i-adapter"
        roles = [part[1] for part in map(split, shapes) if part is not None]
        if any(role is not Role.ALPHA for role in roles):
            other = "a LoRA"
    other = other or _first_match(_OTHERS, shapes) or looks_like(shapes)
    looks = f"it looks like {other}" if other else f"it holds {', '.join(sorted(shapes)[:3])}"
    raise ValueError(f"{file} is neither a ControlNet nor a T2I-Adapter; {looks}")


def _first_match(patterns: Mapping[str, str], names: Collection[str]) -> str | None:
    for pattern, what in patterns.items():
        if any(re.search(pattern, name) for name in names):
            return what
    return None
