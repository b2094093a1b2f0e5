"""The tensors of single files under the names that diffusers and transformers give them."""

import re
from collections.abc import Mapping

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor

from deployments.diffusion.engine.models.checkpoints.identity import PREFIXES

Tensors = Mapping[str, Tensor]
_OF_VAE = re.compile(r"(encoder|decoder|quant_conv|post_quant_conv)\.")
# Of attention, as diffusers called it before it had one class for all.
_OLD_ATTENTION = {
    r"\.query\.": ".to_q.",
    r"\.key\.": ".to_k.",
    r"\.value\.": ".to_v.",
    r"\.proj_attn\.": ".to_out.0.",
}
# What stands around a text encoder, in whose file it is.
_WRAPPERS = re.compile(r"^(model\.|transformer\.(?!resblocks))?(text_model\.)?")
# What CLIP's files hold beside weights, and what only their training needs.
_NO_WEIGHTS = ("position_ids", "logit_scale", "attn_mask")
_OPENCLIP = {
    r"^transformer\.resblocks\.": "encoder.layers.",
    r"\.ln_1\.": ".layer_norm1.",
    r"\.ln_2\.": ".layer_norm2.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
    r"\.attn\.": ".self_attn.",
    r"^token_embedding\.": "embeddings.token_embedding.",
    r"^positional_embedding$": "embeddings.position_embedding.weight",
    r"^ln_final\.": "final_layer_norm.",
}
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.")


def unet_tensors(tensors: Tensors, config: Mapping[str, object]) -> dict[str, Tensor]:
    """A UNet's, of ldm's or sgm's names without a prefix.

    Args:
        config: of diffusers' UNet. A name that it does not lead to is left out.
    """
    (prefix,) = PREFIXES["unet"]
    prefixed = {prefix + name: tensor for name, tensor in tensors.items()}
    converted: dict[str, Tensor] = convert_ldm_unet_checkpoint(prefixed, config)
    return converted


def vae_tensors(tensors: Tensors, config: Mapping[str, object]) -> dict[str, Tensor]:
    """A VAE's, of ldm's names or diffusers' own, without a prefix; what else its training left in
    the file (losses, averages) is left out."""
    of_vae = {name: tensor for name, tensor in tensors.items() if _OF_VAE.match(name)}
    if any(".down_blocks." in name or ".up_blocks." in name for name in of_vae):
        return {_replaced(name, _OLD_ATTENTION): tensor for name, tensor in of_vae.items()}
    converted: dict[str, Tensor] = convert_ldm_vae_checkpoint(of_vae, config)
    return converted


def text_tensors(tensors: Tensors, layers: int) -> dict[str, Tensor]:
    """A text encoder's, of transformers' names or OpenCLIP's, wrapped or not, under transformers'
    without `text_model.`.

    Args:
        layers: of the encoder. One more is left out: Stable Diffusion 2 reads OpenCLIP's last but
            one.
    """
    found: dict[str, Tensor] = {}
    for wrapped, tensor in tensors.items():
        name = _replaced(_WRAPPERS.sub("", wrapped), _OPENCLIP)
        layer = _LAYER.match(name)
        if name.endswith(_NO_WEIGHTS) or (layer is not None and int(layer[1]) == layers):
            continue
        if name == "text_projection":  # OpenCLIP multiplies by it from the other side
            found["text_projection.weight"] = tensor.T.contiguous()
        elif ".in_proj_" in name:
            for part, third in zip("qkv", torch.chunk(tensor, 3), strict=True):
                found[name.replace("in_proj_", f"{part}_proj.")] = third.contiguous()
        else:
            found[name] = tensor
    return found


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for pattern, replacement in table.items():
        name = re.sub(pattern, replacement, name)
    return name
