"""ControlNets: copies of a UNet's first half, which see a map and tell the UNet what to add.

A ControlNet-Union is one that knows several kinds of maps, by their modes.
"""

import re
from typing import TypeAlias

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel
from diffusers.models.controlnets.controlnet_union import ResidualAttentionBlock
from torch import Tensor

from configs.published import Config
from deployments.diffusion.engine.adapters.lineage import looks_like
from deployments.diffusion.engine.models.controls.files import ControlFile
from deployments.diffusion.engine.models.skeletons import on_meta

ControlNet: TypeAlias = ControlNetModel | ControlNetUnionModel

MAP_CHANNELS = 3
LATENT_CHANNELS = 4  # without mask and masked picture, whatever the UNet sees
# What a net has of the UNet that it was copied from, and no shape of a tensor tells.
_OF_THE_UNET = (
    "act_fn",
    "addition_embed_type",
    "addition_time_embed_dim",
    "attention_head_dim",
    "block_out_channels",
    "cross_attention_dim",
    "flip_sin_to_cos",
    "freq_shift",
    "layers_per_block",
    "norm_eps",
    "norm_num_groups",
    "num_attention_heads",
    "projection_class_embeddings_input_dim",
    "upcast_attention",
)
# In the name of a file: its maps are pooled, which no tensor tells (control_v11e_sd15_shuffle).
_POOLED = "shuffle"


class RowsApart(ResidualAttentionBlock):
    """The attention of a ControlNet-Union to its maps, each row by itself.

    As it was published, and as diffusers has it, it takes the batch for what is attended to. Of an
    image made alone, whose rows are all the same here, that is itself.
    """

    def attention(self, x: Tensor) -> Tensor:
        """(B, maps and latents, width)."""
        attended: Tensor = super().attention(x.reshape(1, -1, x.shape[-1]))
        return attended.view_as(x)


def read_controlnet(
    file: ControlFile, unet: UNet2DConditionModel, dtype: torch.dtype
) -> ControlNet:
    """Reads a ControlNet or a ControlNet-Union, on the CPU.

    Raises `ValueError` if it was not made for such a UNet.
    """
    _check_made_for(file, unet)
    net: ControlNet
    if file.kind == "controlnet-union":
        net = on_meta(ControlNetUnionModel, _config(ControlNetUnionModel, file, unet))
    else:
        net = on_meta(ControlNetModel, _config(ControlNetModel, file, unet))
    for what, channels, known in (
        ("maps", int(net.config.conditioning_channels), MAP_CHANNELS),
        ("latents", int(net.config.in_channels), LATENT_CHANNELS),
    ):
        if channels != known:
            raise ValueError(f"{file.name} reads {what} of {channels} channels; they have {known}")
    file.load(net, dtype)
    for module in net.modules():
        if type(module) is ResidualAttentionBlock:
            module.__class__ = RowsApart
    return net


def _check_made_for(file: ControlFile, unet: UNet2DConditionModel) -> None:
    """Whether the blocks of a UNet are those of which a net is a copy."""
    widths = dict[int, int]()
    prompts = {int(unet.config.cross_attention_dim)}
    for name, shape in file.shapes.items():
        if found := re.fullmatch(r"down_blocks\.(\d+)\.resnets\.0\.conv1\.weight", name):
            widths[int(found[1])] = shape[0]
        elif name.endswith("attn2.to_k.weight"):
            prompts.add(shape[1])
    blocks = [width for _, width in sorted(widths.items())]
    if blocks != list(unet.config.block_out_channels) or len(prompts) > 1:
        kin = looks_like(file.shapes)
        family = "is it of another family?" if kin is None else f"it looks like one for {kin}"
        raise ValueError(f"{file.name} does not fit this model; {family}")


def _config(kind: type[ControlNet], file: ControlFile, unet: UNet2DConditionModel) -> Config:
    """A net's configuration: its folder's, or what its shapes and name tell beside the UNet's."""
    shapes = file.shapes
    types = {}
    if file.kind == "controlnet-union":
        modes, width = shapes["task_embedding"]
        types = {
            "num_control_type": modes,
            "num_trans_channel": width,
            "num_proj_channel": width,
            "num_trans_layer": file.count(r"transformer_layes\.(\d+)\."),
        }
    if file.folder is not None:
        described: Config = kind.load_config(file.folder, local_files_only=True)
        return described | types
    levels = range(len(unet.config.block_out_channels))
    attended = [f"down_blocks.{level}.attentions.0" for level in levels]
    within = [any(name.startswith(f"{place}.") for name in shapes) for place in attended]
    middle = any(name.startswith("mid_block.attentions.") for name in shapes)
    depths = [file.count(rf"{place}\.transformer_blocks\.(\d+)\.") for place in attended]
    projections = [s for name, s in shapes.items() if name.endswith(".proj_in.weight")]
    steps = file.count(r"controlnet_cond_embedding\.blocks\.(\d+)\.")
    config = {key: unet.config[key] for key in _OF_THE_UNET} | {
        "in_channels": shapes["conv_in.weight"][1],
        "conditioning_channels": shapes["controlnet_cond_embedding.conv_in.weight"][1],
        "conditioning_embedding_out_channels": [
            shapes["controlnet_cond_embedding.conv_in.weight"][0],
            *(
                shapes[f"controlnet_cond_embedding.blocks.{i}.weight"][0]
                for i in range(1, steps, 2)
            ),
        ],
        "down_block_types": [
            "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in within
        ],
        "transformer_layers_per_block": [
            depth if attends else 1 for depth, attends in zip(depths, within, strict=True)
        ],
        "use_linear_projection": any(len(shape) == 2 for shape in projections),
        **types,
    }
    if file.kind == "controlnet":  # a union has no other
        config["mid_block_type"] = "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D"
        config["global_pool_conditions"] = _POOLED in file.name.lower()
    return config
