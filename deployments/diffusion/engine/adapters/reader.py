"""Style adapters from disk, as PEFT layers.

Reading happens beside the engine, on a skeleton of the model that holds no weights, by
diffusers' own loaders (kohya and diffusers formats, ranks and alphas as there): a broken file
or one of another family fails there and never touches the model that serves.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel, UNetMotionModel
from diffusers.loaders.lora_pipeline import (
    StableDiffusionLoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
)
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import nn

_UNSUPPORTED = {
    "dora_scale": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "lora_mid": "LoCon with a middle layer",
    ".bias": "LoRA with biases",
}
# kohya's, PEFT's, and the two older spellings of diffusers.
_DOWN_PROJECTION = re.compile(r"(lora_down|lora_A(\.\w+)?|lora\.down|layer\.down)\.weight$")
_THE_REST = re.compile(r"((lora_up|lora_B(\.\w+)?|lora\.up|layer\.up)\.weight|\.alpha)$")


class LoraError(Exception):
    """A file that cannot serve as a style adapter of this model. `str(error)` says why."""


@dataclass(frozen=True)
class LoraWeights:
    """An adapter read from disk, ready to be attached.

    Attributes:
        layers: per model ("unet", "text_encoder", "text_encoder_2"), PEFT layers by module
            name. The factor alpha / rank is already in the up-projection.
        nbytes: size of its weights.
    """

    layers: dict[str, dict[str, LoraLayer]]
    nbytes: int


def lora_file(path: Path) -> Path:
    """The one safetensors file that `path` is or holds, else `LoraError`."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise LoraError(f"{path.name} is not a safetensors file; no other format is read")
        return path
    if not path.exists():
        raise LoraError(f"{path} does not exist")
    usual = path / "pytorch_lora_weights.safetensors"
    found = [usual] if usual.exists() else sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise LoraError(f"{path} holds {len(found)} safetensors files; name one of them")
    return found[0]


class LoraReader:
    """Reads adapters for one checkpoint. Not thread-safe: one thread reads.

    Args:
        models: the live models by name: "unet", "text_encoder", for sdxl "text_encoder_2", and
            "motion_unet" where there is one.
            Only their configurations, devices and dtypes are used.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._skeletons = {name: _skeleton(model) for name, model in models.items()}
        self._places = {
            name: (next(model.parameters()).device, next(model.parameters()).dtype)
            for name, model in models.items()
        }
        self._loader = (
            StableDiffusionXLLoraLoaderMixin
            if "text_encoder_2" in models
            else StableDiffusionLoraLoaderMixin
        )

    def read(self, path: Path, key: str, unet: str = "unet") -> LoraWeights:
        """Reads an adapter and brings its weights to the models' devices and dtypes.

        Args:
            path: a safetensors file, or a folder with one.
            unet: which UNet it goes to, "unet" or "motion_unet".
            key: the name its PEFT layers use; letters, digits, '_' and '-'.

        Raises `LoraError` for anything but a plain LoRA of this family with finite weights.
        """
        file = lora_file(path)
        tensors = _check_file(file)
        try:
            return self._read(file, key, tensors, unet)
        except (LoraError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the loaders raise whatever the odd file provokes
            first_line = str(error).partition("\n")[0]
            raise LoraError(
                f"{file.name} does not fit this model; is it of another family? "
                f"({type(error).__name__}: {first_line})"
            ) from error
        finally:
            for skeleton in self._skeletons.values():
                _strip(skeleton)

    def _read(self, file: Path, key: str, tensors: int, target: str) -> LoraWeights:
        unet = self._skeletons[target]
        unet_config = {"unet_config": unet.config} if "text_encoder_2" in self._skeletons else {}
        state_dict, alphas, metadata = self._loader.lora_state_dict(
            str(file), return_lora_metadata=True, **unet_config
        )
        common = {
            "network_alphas": alphas,
            "metadata": metadata,
            "adapter_name": key,
            "low_cpu_mem_usage": True,
        }
        self._loader.load_lora_into_unet(state_dict, unet=unet, **common)
        for name, encoder in self._skeletons.items():
            if name.startswith("text_encoder") and any(
                k.startswith(f"{name}.") for k in state_dict
            ):
                self._loader.load_lora_into_text_encoder(
                    state_dict, text_encoder=encoder, prefix=name, **common
                )
        layers = {
            name: {n: m for n, m in skeleton.named_modules() if isinstance(m, LoraLayer)}
            for name, skeleton in self._skeletons.items()
        }
        found = sum(len(by_name) for by_name in layers.values())
        if found != tensors:
            raise LoraError(
                f"{file.name} adapts {tensors} layers, of which this model has {found}; "
                "is it of another family?"
            )
        nbytes = 0
        for name, by_name in layers.items():
            device, dtype = self._places[name]
            for layer in by_name.values():
                nbytes += _settle(layer, key, device, dtype, file)
        return LoraWeights(layers, nbytes)


def _check_file(file: Path) -> int:
    """How many layers a file adapts; `LoraError` if it is broken or no plain LoRA."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise LoraError(f"{file.name} is not a readable safetensors file ({error})") from error
    for mark, kind in _UNSUPPORTED.items():
        if any(mark in name for name in names):
            raise LoraError(f"{file.name} is {kind}; only plain LoRA can be mixed row by row")
    downs = [name for name in names if _DOWN_PROJECTION.search(name)]
    if not downs:
        raise LoraError(f"{file.name} holds no LoRA weights")
    for name in names:
        if not _DOWN_PROJECTION.search(name) and not _THE_REST.search(name):
            raise LoraError(f"{file.name} holds {name!r}, which is no part of a plain LoRA")
    return len(downs)


def _settle(
    layer: LoraLayer, key: str, device: torch.device, dtype: torch.dtype, file: Path
) -> int:
    """Folds alpha / rank into the up-projection and moves the pair; returns its bytes."""
    down, up = layer.lora_A[key], layer.lora_B[key]
    layer.requires_grad_(False)
    with torch.no_grad():
        for parameter in up.parameters():
            parameter.mul_(layer.scaling[key])
        layer.scaling[key] = 1.0
        parameters = [*down.parameters(), *up.parameters()]
        down.to(device=device, dtype=dtype)
        up.to(device=device, dtype=dtype)
        if not all(bool(p.isfinite().all()) for p in (*down.parameters(), *up.parameters())):
            raise LoraError(f"{file.name} holds numbers that are not finite in {dtype}")
    layer.eval()
    return sum(int(p.numel()) for p in parameters) * dtype.itemsize


def _skeleton(model: nn.Module) -> nn.Module:
    """The same tree of modules, whose weights are views of one zero: shapes without memory."""
    with init_empty_weights():
        if isinstance(model, UNet2DConditionModel | UNetMotionModel):
            skeleton: nn.Module = type(model).from_config(model.config)
        else:
            skeleton = type(model)(model.config)
    for module in skeleton.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zero = torch.zeros((), dtype=torch.float32).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zero, requires_grad=False))
    return skeleton.eval()


def _strip(skeleton: nn.Module) -> None:
    """Takes whatever adapter layers a skeleton carries off again."""
    wrapped = [(n, m) for n, m in skeleton.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in wrapped:
        parent_name, _, child = name.rpartition(".")
        setattr(skeleton.get_submodule(parent_name), child, layer.base_layer)
    if hasattr(skeleton, "peft_config"):
        del skeleton.peft_config
        skeleton.__dict__["_hf_peft_config_loaded"] = False
