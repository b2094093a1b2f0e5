"""Where the tensors of an adapter file belong: every spelling of every layer's name.

A tensor's name is the name of a layer and a mark of its role. Both are spelt in several ways:

    lora_unet_mid_block_attentions_0_proj_in.lora_down.weight    kohya, on diffusers' UNet
    lora_unet_middle_block_1_proj_in.lora_down.weight            kohya, on the original (LDM) UNet
    diffusion_model.middle_block.1.proj_in.lora_down.weight      ComfyUI
    lycoris_mid_block_attentions_0_proj_in.lora_down.weight      SimpleTuner
    unet.mid_block.attentions.0.proj_in.lora_A.weight            diffusers
    unet.mid_block.attentions.0.proj_in.lora.down.weight         diffusers, before PEFT
    mid_block.[...].attn1.processor.to_out_lora.down.weight      diffusers, its first; AnimateDiff
    base_model.model.mid_block.attentions.0.proj_in.lora_A.default.weight                    PEFT
    unet.middle_block.1.proj_in.lora_down.weight                 OneTrainer (OMI)
"""

from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from typing import NamedTuple

from torch import nn

PEFT_PREFIX = "base_model.model."


class Role(Enum):
    """What a tensor is to its layer."""

    DOWN = "down-projection"
    UP = "up-projection"
    MID = "middle layer"
    ALPHA = "alpha"
    UP_BIAS = "bias of the up-projection"
    HADA_1A = "hada_w1_a"
    HADA_1B = "hada_w1_b"
    HADA_1T = "hada_t1"
    HADA_2A = "hada_w2_a"
    HADA_2B = "hada_w2_b"
    HADA_2T = "hada_t2"
    KRON_1 = "lokr_w1"
    KRON_1A = "lokr_w1_a"
    KRON_1B = "lokr_w1_b"
    KRON_2 = "lokr_w2"
    KRON_2A = "lokr_w2_a"
    KRON_2B = "lokr_w2_b"
    KRON_2T = "lokr_t2"
    MAGNITUDE = "lora_magnitude_vector"  # PEFT's DoRA
    DORA_SCALE = "dora_scale"  # LyCORIS', which may be of inputs
    WEIGHT = "difference of the weight"
    BIAS = "difference of the bias"


class Place(NamedTuple):
    """A layer: the name of its model ("unet"), and its own in there ("mid_block.[...].proj_in")."""

    model: str
    module: str


def adaptable(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """The linear and convolution layers of a model by name, without those of an IP-Adapter."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and ".processor." not in name:
            yield name, module


def norms(model: nn.Module) -> Iterator[tuple[str, nn.LayerNorm | nn.GroupNorm]]:
    """The normalisations of a model that have weights, by name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
            yield name, module


_MARKS = {
    "alpha": Role.ALPHA,
    "lora_down.weight": Role.DOWN,
    "lora_up.weight": Role.UP,
    "lora_mid.weight": Role.MID,
    "lora_A.weight": Role.DOWN,
    "lora_B.weight": Role.UP,
    "lora_B.bias": Role.UP_BIAS,
    "lora_up.bias": Role.UP_BIAS,
    "lora_magnitude_vector": Role.MAGNITUDE,
    "lora_magnitude_vector.weight": Role.MAGNITUDE,
    "dora_scale": Role.DORA_SCALE,
    "diff": Role.WEIGHT,
    "diff_b": Role.BIAS,
    "w_norm": Role.WEIGHT,
    "b_norm": Role.BIAS,
}
_MARKS |= {role.value: role for role in Role if role.value.startswith(("hada_", "lokr_"))}
_OLDER_MARKS = {"down.weight": Role.DOWN, "up.weight": Role.UP}  # behind a layer's older end
_OLDER_ENDS = (".lora", ".lora_linear_layer", "_lora")


def split(tensor: str) -> tuple[str, Role] | None:
    """The layer's name in a tensor's, as it is spelt, and the role: ("x", DOWN) of
    "x.lora_A.weight". None if the tensor is no part of an adapter."""
    parts = tensor.split(".")
    for length in (1, 2):
        layer, mark = ".".join(parts[:-length]), ".".join(parts[-length:])
        if mark in _MARKS:
            return _without_end(layer), _MARKS[mark]
        if mark in _OLDER_MARKS and _without_end(layer) != layer:
            return _without_end(layer), _OLDER_MARKS[mark]
    # PEFT may say the adapter's name in the mark: lora_A.default.weight, hada_w1_a.default.
    for before, after in ((-3, -1), (-2, len(parts))):
        mark = ".".join([*parts[before : before + 1], *parts[after:]])
        if mark in _MARKS:
            return ".".join(parts[:before]), _MARKS[mark]
    return None


def _without_end(stem: str) -> str:
    for end in _OLDER_ENDS:
        if stem.endswith(end):
            return stem.removesuffix(end)
    return stem


class Names:
    """Every spelling of every layer of a checkpoint's models.

    Args:
        models: "unet", "text_encoder", for sdxl "text_encoder_2", maybe "motion_unet". Their
            modules are not kept.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        layers = {
            name: [layer for layer, _ in (*adaptable(model), *norms(model))]
            for name, model in models.items()
        }
        encoders = [name for name in layers if name.startswith("text_encoder")]
        texts: dict[str, Place] = {}
        for model in encoders:
            for layer in layers[model]:
                names = _encoder_names(model, layer, alone=len(encoders) == 1)
                texts |= dict.fromkeys(names, Place(model, layer))
        self._places: dict[str, dict[str, Place]] = {}  # by UNet
        for model in layers.keys() - encoders:
            self._places[model] = dict(texts)
            ldm = _ldm_names(layers[model])
            for layer in layers[model]:
                names = _unet_names(layer, ldm.get(layer))
                self._places[model] |= dict.fromkeys(names, Place(model, layer))

    def find(self, tensor: str, unet: str = "unet") -> tuple[Place, Role] | None:
        """The layer that a tensor belongs to, and its role there.

        Args:
            unet: which UNet is meant where a name says "unet", or nothing at all.

        Returns None for what is no part of an adapter or belongs to no layer of these models.
        """
        parts = split(tensor)
        if parts is None:
            return None
        layer, role = parts
        place = self._places[unet].get(layer.replace(PEFT_PREFIX, "", 1))
        return None if place is None else (place, role)


def _unet_names(layer: str, ldm: str | None) -> Iterator[str]:
    """All spellings of a UNet's layer; `ldm`: its name in the original UNet."""
    dotted = {layer, layer.replace("to_out.0", "to_out")}
    if ".motion_modules." in layer:
        dotted |= {_animatediff(name) for name in dotted}
    dotted |= {name.replace(".to_", ".processor.to_") for name in dotted}
    for name in dotted:
        yield name
        yield f"unet.{name}"
    for prefix in ("lora_unet_", "lycoris_"):
        yield prefix + layer.replace(".", "_")
    if ldm is not None:
        for prefix in ("diffusion_model.", "model.diffusion_model.", "unet."):
            yield prefix + ldm
        for prefix in ("lora_unet_", "lycoris_"):
            yield prefix + ldm.replace(".", "_")


def _animatediff(layer: str) -> str:
    """The name of a motion module's layer in AnimateDiff's own files."""
    parts = layer.split(".")
    parts.insert(parts.index("motion_modules") + 2, "temporal_transformer")
    name = ".".join(parts)
    return name.replace("attn1", "attention_blocks.0").replace("attn2", "attention_blocks.1")


_ENCODER_PREFIXES = {
    "text_encoder": (
        "lora_te_",
        "lora_te1_",
        "clip_l.",
        "text_encoders.clip_l.transformer.",
        "text_encoders.clip_h.transformer.",
    ),
    "text_encoder_2": ("lora_te2_", "clip_g.", "text_encoders.clip_g.transformer."),
}
_OLDER_PROJECTIONS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def _encoder_names(model: str, layer: str, *, alone: bool) -> Iterator[str]:
    """All spellings of a text encoder's layer; `alone`: there is no other encoder."""
    # Whether "text_model" is part of it depends on the version of transformers.
    short = layer.removeprefix("text_model.")
    parent, dot, child = short.rpartition(".")
    dotted = {short, parent + dot + _OLDER_PROJECTIONS.get(child, child)}
    dotted |= {f"text_model.{name}" for name in dotted}
    prefixes = (f"{model}.", *_ENCODER_PREFIXES[model], *(["", "lycoris_"] if alone else []))
    for prefix in prefixes:
        for name in dotted:
            yield prefix + (name.replace(".", "_") if prefix.endswith("_") else name)


_LDM_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_LDM_MIDDLE = {
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_LDM_RESNET = {
    "norm1": "in_layers.0",
    "norm2": "out_layers.0",
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def _ldm_names(layers: Collection[str]) -> dict[str, str]:
    """The names of a UNet's layers in the original code, where they have one there."""
    blocks = _ldm_blocks(layers)
    names: dict[str, str] = {}
    for layer in layers:
        parts = layer.split(".")
        depth = 3 if parts[0] == "mid_block" else 4
        block, inner = ".".join(parts[:depth]), ".".join(parts[depth:])
        if layer in _LDM_TOP:
            names[layer] = _LDM_TOP[layer]
        elif "downsamplers" in parts:
            names[layer] = f"{blocks[block]}.op"
        elif block in blocks:
            names[layer] = f"{blocks[block]}.{_LDM_RESNET.get(inner, inner)}"
    return names


def _ldm_blocks(layers: Collection[str]) -> dict[str, str]:
    """The original names of blocks: numbered through all levels, samplers among them."""
    # Each is [side, level, kind, number], as "down_blocks.0.resnets.1" says it.
    found = {tuple(layer.split(".")[:4]) for layer in layers}
    blocks = dict(_LDM_MIDDLE)
    for side, original, number in (("down", "input_blocks", 1), ("up", "output_blocks", 0)):
        for level in sorted({int(b[1]) for b in found if b[0] == f"{side}_blocks"}):
            here = f"{side}_blocks.{level}"
            kinds = [b[2] for b in found if b[:2] == (f"{side}_blocks", str(level))]
            for index in range(kinds.count("resnets")):
                blocks[f"{here}.resnets.{index}"] = f"{original}.{number}.0"
                blocks[f"{here}.attentions.{index}"] = f"{original}.{number}.1"
                number += 1
            if "downsamplers" in kinds:
                blocks[f"{here}.downsamplers.0"] = f"{original}.{number}.0"
                number += 1
            if "upsamplers" in kinds:  # the last part of the last block
                place = 2 if "attentions" in kinds else 1
                blocks[f"{here}.upsamplers.0"] = f"{original}.{number - 1}.{place}"
    return blocks
