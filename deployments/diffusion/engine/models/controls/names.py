"""What the tensors of controls are called: diffusers' names of those in original files.

input_blocks.4.0.in_layers.0.weight   down_blocks.1.resnets.0.norm1.weight     ControlNet
input_hint_block.2.weight             controlnet_cond_embedding.blocks.0.weight
zero_convs.3.0.weight                 controlnet_down_blocks.3.weight
body.2.block1.weight                  adapter.body.1.resnets.0.block1.weight   T2I-Adapter
body.1.body.3.block1.weight           adapter.body.1.resnets.3.block1.weight   a light one
"""

import re
from collections.abc import Collection, Iterable, Sequence

_INSIDE = "control_model."  # a checkpoint; the first ControlNets were published like that
_RESNETS_A_LEVEL = 2  # of a T2I-Adapter that is not light
_PARTS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "middle_block_out.0": "controlnet_mid_block",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def diffusers_names(names: Collection[str]) -> dict[str, str]:
    """diffusers' names of tensors by those in their file: the same where that is none of an
    original one. Of a checkpoint with a ControlNet in it, the ControlNet's alone."""
    nets = [name for name in names if name.startswith(_INSIDE)]
    bare = {name: name.removeprefix(_INSIDE) for name in nets or names}
    if any(name.startswith("body.") for name in bare.values()):
        light = any(re.match(r"body\.\d+\.body\.", name) for name in bare.values())
        return {theirs: _of_adapter(name, light=light) for theirs, name in bare.items()}
    hints = _numbers(r"input_hint_block\.(\d+)\.", bare.values())
    samplers = _numbers(r"input_blocks\.(\d+)\.0\.op\.", bare.values())
    a_level = samplers[0] if samplers else 1
    return {theirs: _of_net(name, hints, a_level) for theirs, name in bare.items()}


def _numbers(pattern: str, names: Iterable[str]) -> list[int]:
    found = (re.match(pattern, name) for name in names)
    return sorted({int(number[1]) for number in found if number})


def _of_net(name: str, hints: Sequence[int], a_level: int) -> str:
    """Of a ControlNet's tensor.

    Args:
        hints: numbers of the layers that read the map.
        a_level: blocks of each level, its sampler among them.
    """
    for original, ours in _PARTS.items():
        if name.startswith(f"{original}."):
            rest = name.removeprefix(f"{original}.")
            return f"{ours}.{_of_resnet(rest) if '.resnets.' in ours else rest}"
    if found := re.fullmatch(r"input_blocks\.(\d+)\.([01])\.(.+)", name):
        level, index = divmod(int(found[1]) - 1, a_level)
        block, rest = f"down_blocks.{level}", found[3]
        if rest.startswith("op."):
            return f"{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
        if found[2] == "1":
            return f"{block}.attentions.{index}.{rest}"
        return f"{block}.resnets.{index}.{_of_resnet(rest)}"
    if found := re.fullmatch(r"zero_convs\.(\d+)\.0\.(.+)", name):
        return f"controlnet_down_blocks.{found[1]}.{found[2]}"
    if found := re.fullmatch(r"input_hint_block\.(\d+)\.(.+)", name):
        place = hints.index(int(found[1]))
        ends = {0: "conv_in", len(hints) - 1: "conv_out"}
        return f"controlnet_cond_embedding.{ends.get(place, f'blocks.{place - 1}')}.{found[2]}"
    return name


def _of_resnet(rest: str) -> str:
    layer, _, part = rest.rpartition(".")
    return f"{_RESNET.get(layer, layer)}.{part}"


def _of_adapter(name: str, *, light: bool) -> str:
    """Of a T2I-Adapter's tensor."""
    if light:
        return "adapter." + re.sub(r"^(body\.\d+)\.body\.", r"\1.resnets.", name)
    found = re.fullmatch(r"body\.(\d+)\.(.+)", name)
    if found is None:
        return f"adapter.{name}"
    level, index = divmod(int(found[1]), _RESNETS_A_LEVEL)
    inner = found[2] if found[2].startswith("in_conv.") else f"resnets.{index}.{found[2]}"
    return f"adapter.body.{level}.{inner}"
