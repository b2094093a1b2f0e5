"""Layer names of the original Stable Diffusion UNets (ldm, sgm), whose blocks have one number."""

from collections.abc import Collection

RESNET_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
TOP_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def sgm_layer(layer: str, layers_per_block: int, plain_up_blocks: Collection[int] = ()) -> str:
    """The name in the original UNet of the diffusers layer `layer`.

    `plain_up_blocks` are the up blocks without attention, whose upsampler therefore comes
    second, not third. Inverse of `_maybe_map_sgm_blocks_to_diffusers` and
    `convert_ldm_unet_checkpoint` in diffusers.
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
        place = 1 if int(parts[1]) in plain_up_blocks else 2
        return f"output_blocks.{level + layers_per_block}.{place}.conv"
    position = level + int(index)
    block = (
        f"input_blocks.{1 + position}" if parts[0] == "down_blocks" else f"output_blocks.{position}"
    )
    return ".".join([block, "1" if kind == "attentions" else "0", *sgm_inner(kind, rest)])


def sgm_inner(kind: str, rest: list[str]) -> list[str]:
    """The rest of the name, inside a resnet (renamed) or an attention (the same)."""
    return [RESNET_LAYERS[rest[0]]] if kind == "resnets" else rest
