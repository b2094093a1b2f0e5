"""Motion adapters from disk: a diffusers folder, or one file as authors of motion modules publish
it."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import MotionAdapter, UNet2DConditionModel
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from configs.sources import fetch, published
from deployments.diffusion.engine.adapters.files import LoraError, lora_file

# What files do not tell, and all that were published have in common.
HEADS = 8  # of attention in every layer
POSITIONS = 32  # frames, where a file leaves out the table of positions
CONFIG = "config.json"
# AnimateDiff's own names, and those that diffusers has for them.
_RENAMED = (
    ("temporal_transformer.", ""),
    ("attention_blocks.0.pos_encoder.", "pos_embed."),
    ("attention_blocks.1.pos_encoder.", "pos_embed."),
    ("attention_blocks.0.", "attn1."),
    ("attention_blocks.1.", "attn2."),
    ("norms.0.", "norm1."),
    ("norms.1.", "norm2."),
    ("ff_norm.", "norm3."),
)
_TABLE = "pos_embed.pe"
_LAYER = re.compile(r"down_blocks\.(\d+)\.motion_modules\.\d+\.norm\.weight")


def read_motion_adapter(
    source: str, unet: UNet2DConditionModel, variant: str | None, dtype: torch.dtype
) -> MotionAdapter:
    """A motion adapter, on the CPU.

    Args:
        source: a diffusers folder, or one safetensors file in diffusers' names or AnimateDiff's.
        unet: that it is for. Of files, groups of normalisations are this UNet's: motion layers
            have as many.
        variant: which weights of a folder, where it has them.

    Raises `ValueError` for what is none.
    """
    path = fetch(source, variant=variant)
    if (path / CONFIG).is_file():
        return _from_folder(path, variant, dtype)
    try:
        file = lora_file(path)
        tensors = load_file(file)
    except (LoraError, SafetensorError) as error:
        raise ValueError(str(error)) from error
    return _from_tensors(tensors, int(unet.config.norm_num_groups), dtype)


def _from_folder(folder: Path, variant: str | None, dtype: torch.dtype) -> MotionAdapter:
    kind = MotionAdapter.load_config(folder, local_files_only=True).get("_class_name")
    if kind != MotionAdapter.__name__:
        raise ValueError(f"it is a {kind}; a {MotionAdapter.__name__} is needed")
    return MotionAdapter.from_pretrained(
        folder,
        torch_dtype=dtype,
        variant=published(folder, variant),
        use_safetensors=True,
        local_files_only=True,
    )


def _from_tensors(given: Mapping[str, Tensor], groups: int, dtype: torch.dtype) -> MotionAdapter:
    tensors = {_renamed(name): tensor for name, tensor in given.items()}
    layers: dict[int, list[int]] = {}  # of each block, the channels of its layers
    for name, tensor in tensors.items():
        if (found := _LAYER.fullmatch(name)) is not None:
            layers.setdefault(int(found[1]), []).append(len(tensor))
    if not layers:
        hint = "; motion LoRAs go under motion_loras" if any("lora" in n for n in given) else ""
        raise ValueError(f"it holds no motion layers, but {min(given, default='nothing')!r}{hint}")
    tables = [tensor for name, tensor in tensors.items() if name.endswith(_TABLE)]
    blocks = [layers[block] for block in sorted(layers)]
    with torch.device("meta"):
        adapter = MotionAdapter(
            block_out_channels=tuple(channels[0] for channels in blocks),
            motion_layers_per_block=tuple(map(len, blocks)),
            motion_num_attention_heads=HEADS,
            motion_norm_num_groups=groups,
            motion_max_seq_length=tables[0].shape[1] if tables else POSITIONS,
            use_motion_mid_block=any(name.startswith("mid_block.") for name in tensors),
        )
    needed = adapter.state_dict()
    _check(tensors, needed)
    whole = {
        name: tensors[name] if name in tensors else _positions(like)
        for name, like in needed.items()
    }
    adapter.load_state_dict({name: one.to(dtype) for name, one in whole.items()}, assign=True)
    return adapter


def _positions(like: Tensor) -> Tensor:
    """The table of positions that a file leaves out."""
    _, frames, width = like.shape
    table: Tensor = SinusoidalPositionalEmbedding(width, max_seq_length=frames).pe
    return table


def _renamed(name: str) -> str:
    name = name.removeprefix("module.")
    for theirs, ours in _RENAMED:
        name = name.replace(theirs, ours)
    return name


def _check(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    strange = sorted(tensors.keys() - needed.keys())
    if strange:
        raise ValueError(
            f"{len(strange)} of its tensors are no part of motion layers ({strange[0]!r} for one)"
        )
    lacking = [name for name in needed if name not in tensors and not name.endswith(_TABLE)]
    if lacking:
        raise ValueError(f"it lacks {len(lacking)} tensors ({lacking[0]!r} for one)")
    for name, tensor in tensors.items():
        if tensor.shape != needed[name].shape:
            raise ValueError(
                f"its {name!r} is {tuple(tensor.shape)}; {tuple(needed[name].shape)} is needed"
            )
        if not tensor.float().isfinite().all():
            raise ValueError(f"its {name!r} holds numbers that are not finite")
