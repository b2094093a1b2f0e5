"""Models and adapters of the published geometry with random weights, written in seconds.

They draw nothing, but load, run and take memory as the real ones do: no weight is zero, and
signals keep their size from layer to layer, so that no number leaves the range of float16.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from configs.families import FamilyName
from configs.published import Config, geometry
from demo.base import (
    EULER,
    NOISE_SCHEDULE,
    OPENCLIP_PAD,
    write_scheduler,
    write_sd_index,
    write_sdxl_index,
)
from demo.kohya import kohya_layer
from demo.lora import TEXT_ATTENTION, TRANSFORMER
from demo.text_encoder import PREFIX
from demo.tokenizer import EOS, write_tokenizer
from deployments.diffusion.engine.models.skeletons import Model, on_meta, text_encoder_on_meta

TEXT_LAYERS = (*TEXT_ATTENTION, ".mlp.fc1", ".mlp.fc2")
TEXT_PREFIX = "lora_te"
BIAS = 0.02
ALPHA = 16.0
STRENGTH = 0.05  # of an adapter's change to a layer's output, for an input of unit variance


def write_full_size(
    folder: Path,
    family: FamilyName,
    dtype: torch.dtype = torch.float16,
    *,
    device: str = "cpu",
    tiny: bool = False,
) -> None:
    """Writes a base of sd15 or sdxl as a diffusers folder.

    Args:
        device: where the weights are drawn; 3.5 billion of sdxl take a CPU core 20 s.
        tiny: the same classes and files, a few channels wide.
    """
    shapes, place = geometry(family, tiny=tiny), torch.device(device)
    write_tokenizer(folder / "tokenizer", pad_token=EOS)
    if family == "sdxl":
        write_tokenizer(folder / "tokenizer_2", pad_token=OPENCLIP_PAD)
        write_scheduler(folder, "EulerDiscreteScheduler", NOISE_SCHEDULE | EULER)
        write_sdxl_index(folder, inpainting=False)
    else:
        write_scheduler(folder, "PNDMScheduler", NOISE_SCHEDULE)
        write_sd_index(folder, inpainting=False)
    for index, config in enumerate(shapes.text_encoders):
        tensors = drawn(text_encoder_on_meta(index, config), place, dtype, seed=index)
        file = folder / _encoder_name(index) / "model.safetensors"
        _write(file, config, {_hub_name(name): tensor for name, tensor in tensors.items()})
    for name, model, config in (
        ("unet", on_meta(UNet2DConditionModel, shapes.unet), shapes.unet),
        ("vae", on_meta(AutoencoderKL, shapes.vae), shapes.vae),
    ):
        file = folder / name / "diffusion_pytorch_model.safetensors"
        _write(file, config, drawn(model, place, dtype))


def random_model(
    kind: type[Model], config: Config, device: torch.device, dtype: torch.dtype
) -> Model:
    """A model made on its device, ready to run; its weights are those of `write_full_size`."""
    model = on_meta(kind, config)
    model.load_state_dict(drawn(model, device, dtype), assign=True)
    return model.eval().requires_grad_(False)


def drawn(
    model: nn.Module, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> dict[str, Tensor]:
    """A tensor for each name in a model's state: matrices uniform, of variance 1 / fan-in, norms
    the identity, biases small."""
    source = torch.Generator(device).manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, like in model.state_dict().items():
        tensor = torch.empty(like.shape, dtype=dtype, device=device)
        if like.ndim == 1 and name.endswith("weight"):
            tensors[name] = tensor.fill_(1.0)
        else:
            std = BIAS if like.ndim == 1 else like[0].numel() ** -0.5
            tensors[name] = _uniform(tensor, std, source)
    return tensors


def write_adapter(
    file: Path,
    family: FamilyName,
    rank: int,
    seed: int,
    *,
    text: bool = True,
    dtype: torch.dtype = torch.float16,
    device: str = "cpu",
    tiny: bool = False,
) -> None:
    """Writes a LoRA for every attention and feed-forward layer of the UNet and, with `text`, of
    the text encoders, as kohya's sd-scripts does: 986 layers of sdxl, 264 of sd15."""
    source = torch.Generator(device).manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, (width, fan_in, *kernel) in adapter_layers(family, tiny=tiny).items():
        if not text and name.startswith(TEXT_PREFIX):
            continue
        down = torch.empty(rank, fan_in, *kernel, dtype=dtype, device=device)
        up = torch.empty(width, rank, *kernel, dtype=dtype, device=device)
        tensors[f"{name}.lora_down.weight"] = _uniform(down, down[0].numel() ** -0.5, source)
        tensors[f"{name}.lora_up.weight"] = _uniform(up, STRENGTH * rank**0.5 / ALPHA, source)
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA, dtype=dtype)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"ss_network_module": "networks.lora"})


@cache
def adapter_layers(family: FamilyName, *, tiny: bool = False) -> dict[str, tuple[int, ...]]:
    """The layers that a full adapter changes: kohya's name, and the shape of the weight."""
    return dict(_adapter_layers(family, tiny))


def _adapter_layers(family: FamilyName, tiny: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    shapes = geometry(family, tiny=tiny)
    for name, shape in _weights(on_meta(UNet2DConditionModel, shapes.unet), TRANSFORMER):
        yield kohya_layer(name, family=family, layers_per_block=2), shape
    for index, config in enumerate(shapes.text_encoders):
        prefix = f"{TEXT_PREFIX}{index + 1 if len(shapes.text_encoders) > 1 else ''}_"
        for name, shape in _weights(text_encoder_on_meta(index, config), TEXT_LAYERS):
            yield prefix + _hub_name(name).replace(".", "_"), shape


def _weights(model: nn.Module, endings: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, like in model.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer != name and layer.endswith(endings):
            yield layer, tuple(like.shape)


def _encoder_name(index: int) -> str:
    return f"text_encoder_{index + 1}" if index else "text_encoder"


def _hub_name(name: str) -> str:
    """As on the hub; transformers 5 drops a prefix from some of its models' names."""
    return name if name.startswith((PREFIX, "text_projection.")) else PREFIX + name


def _uniform(tensor: Tensor, std: float, source: torch.Generator) -> Tensor:
    bound = 3**0.5 * std
    return tensor.uniform_(-bound, bound, generator=source)


def _write(file: Path, config: Config, tensors: dict[str, Tensor]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_name("config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, file, metadata={"format": "pt"})
