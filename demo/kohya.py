"""Layer names as kohya's sd-scripts writes them.

SD 1.x and 2.x are trained there on diffusers' UNet, SDXL on the original one (sgm), whose
blocks are numbered differently.
"""

RESNET_LAYERS = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
TOP_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def kohya_layer(layer: str, *, family: str, layers_per_block: int) -> str:
    """The kohya name of the UNet layer `layer`, e.g. `lora_unet_mid_block_attentions_0_proj_in`."""
    name = sgm_layer(layer, layers_per_block) if family == "sdxl" else layer
    return "lora_unet_" + name.replace(".", "_")


def sgm_layer(layer: str, layers_per_block: int) -> str:
    """The name in the original SDXL UNet of the diffusers layer `layer`.

    Inverse of `_maybe_map_sgm_blocks_to_diffusers` in diffusers.
    """
    if layer in TOP_LAYERS:
        return TOP_LAYERS[layer]
    parts = layer.split(".")
    if parts[0] == "mid_block":
        kind, index, *rest = parts[1:]
        position = 1 if kind == "attentions" else 2 * int(index)
        return ".".join(["middle_block", str(position), *sgm_inner(kind, rest)])
    level = int(parts[1]) * (layers_per_block + 1)
    kind, index, *rest = parts[2:]
    if kind == "downsamplers":
        return f"input_blocks.{1 + level + layers_per_block}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{level + layers_per_block}.2.conv"
    position = level + int(index)
    block = (
        f"input_blocks.{1 + position}" if parts[0] == "down_blocks" else f"output_blocks.{position}"
    )
    return ".".join([block, "1" if kind == "attentions" else "0", *sgm_inner(kind, rest)])


def sgm_inner(kind: str, rest: list[str]) -> list[str]:
    """The rest of the name, inside a resnet (renamed) or an attention (the same)."""
    return [RESNET_LAYERS[rest[0]]] if kind == "resnets" else rest
