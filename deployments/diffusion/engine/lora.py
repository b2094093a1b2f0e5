"""Style adapters: reading them from disk, putting them on a model, weighing them row by row.

PEFT's layers hold the matrices; a thin layer around them gives every row of the batch its own
weight. Reading happens beside the engine, on a skeleton of the model that holds no weights, by
diffusers' own loaders (kohya and diffusers formats, ranks and alphas as there): a broken file
or one of another family fails there and never touches the model that serves.
"""

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
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
from torch import Tensor, nn

RowWeights = Mapping[str, float]  # weight by adapter key, of one row

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


_Weigh = Callable[[Tensor], Tensor]


class _RowWeights:
    """Weighs the inner activations of an adapter, row by row.

    Rows of weight 0 get exactly nothing, even where theirs overflowed: 0 x inf would be NaN,
    and one row's adapter would spoil its neighbours.
    """

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights
        self._used = weights != 0

    def __call__(self, inner: Tensor) -> Tensor:
        return torch.where(self._used, inner * self._weights, 0.0)


class _RowLora(nn.Module):
    """A layer with its adapters: base(x) + up(weight x down(x)), summed over the adapters in use.

    PEFT's own forward weighs what comes out of `up` instead. Between the two matrices it is the
    same sum, on a few channels instead of hundreds.

    Attributes:
        layer: PEFT's layer, which holds the base layer and each adapter's pair.
        weigh: how to weigh, by key of the adapters in use.
    """

    def __init__(self, layer: LoraLayer) -> None:
        super().__init__()
        self.layer = layer
        self.weigh: dict[str, _Weigh] = {}

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        y: Tensor = layer.base_layer(x)
        for key, weigh in self.weigh.items():
            y = y + layer.lora_B[key](weigh(layer.lora_A[key](x)))
        return y


class LoraStack:
    """The adapters on one live model, and the weights with which its rows use them.

    A layer is wrapped only while a batch uses an adapter on it: a wrapper costs microseconds a
    call even if no adapter is in use, and a UNet has hundreds of layers.

    Args:
        model: the live model; its layers are wrapped and unwrapped.
        input_ranks: number of dimensions of each layer's input, by module name (see
            `record_input_ranks`); it decides how a row's weight broadcasts.
    """

    def __init__(self, model: nn.Module, input_ranks: Mapping[str, int]) -> None:
        self._model = model
        self._input_ranks = input_ranks
        self._layers: dict[str, _RowLora] = {}  # by the name of the layer that it wraps
        self._in_place: set[str] = set()  # of these, those that stand in the model now
        self._by_key: dict[str, tuple[str, ...]] = {}
        self._rows: tuple[tuple[tuple[str, float], ...], ...] | None = None

    @property
    def keys(self) -> frozenset[str]:
        """Adapters that have layers on this model."""
        return frozenset(self._by_key)

    def attach(self, key: str, layers: Mapping[str, LoraLayer]) -> None:
        """Takes an adapter, inactive. Takes the layers over."""
        for name, layer in layers.items():
            known = self._layers.get(name)
            if known is None:
                layer.base_layer = self._model.get_submodule(name)
                layer._active_adapter = []  # PEFT's own idea of it, which nothing here uses
                self._layers[name] = _RowLora(layer)
                continue
            for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
                source = getattr(layer, attribute)
                if key in source:
                    getattr(known.layer, attribute)[key] = source[key]
        if layers:
            self._by_key[key] = tuple(layers)
            self._rows = None

    def detach(self, key: str) -> None:
        """Takes an adapter off and frees its memory. No batch in flight may use it."""
        names = self._by_key.pop(key, ())
        self._put(self._in_place.difference(names))
        kept = {name for others in self._by_key.values() for name in others}
        for name in names:
            if name in kept:
                self._layers[name].layer.delete_adapter(key)
            else:
                del self._layers[name]
        self._rows = None

    def set_rows(
        self, rows: Sequence[RowWeights], device: torch.device, dtype: torch.dtype
    ) -> None:
        """Weighs the adapters for the next forward: one mapping per row of its batch."""
        wanted = tuple(
            tuple(sorted((k, w) for k, w in row.items() if k in self._by_key and w != 0))
            for row in rows
        )
        if wanted == self._rows:
            return
        self._rows = wanted
        active = sorted({key for row in wanted for key, _ in row})
        self._put({name for key in active for name in self._by_key[key]})
        for name in self._in_place:
            self._layers[name].weigh = {}
        for key in active:
            weights = [dict(row).get(key, 0.0) for row in wanted]
            if len(set(weights)) == 1:
                # One number for all, also where a layer folds frames or pixels into the batch.
                for name in self._by_key[key]:
                    self._layers[name].weigh[key] = partial(torch.mul, other=weights[0])
                continue
            column = torch.tensor(weights, dtype=dtype).to(device)
            views = {rank: _RowWeights(column.view(-1, *[1] * (rank - 1))) for rank in (2, 3, 4)}
            for name in self._by_key[key]:
                self._layers[name].weigh[key] = views[self._input_ranks[name]]

    def _put(self, names: Set[str]) -> None:
        """Has exactly these layers wrapped."""
        for name in self._in_place ^ names:
            layer = self._layers[name]
            parent, _, child = name.rpartition(".")
            module = layer if name in names else layer.layer.base_layer
            setattr(self._model.get_submodule(parent), child, module)
        self._in_place = set(names)


def record_input_ranks(model: nn.Module, forward: Callable[[], object]) -> dict[str, int]:
    """Runs `forward` once and notes the dimensions of every linear and conv layer's input."""
    ranks: dict[str, int] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            ranks[name] = (*args, *kwargs.values())[0].ndim

        return hook

    handles = [
        module.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return ranks


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
