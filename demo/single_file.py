"""Writes a base folder as one checkpoint file with the original keys: ldm's (SD 1.5), sgm's (SDXL).

    model.diffusion_model.…          the UNet
    first_stage_model.…              the autoencoder
    cond_stage_model.transformer.…   the text encoder of SD 1.5
    conditioner.embedders.{0,1}.…    those of SDXL, the second as OpenCLIP keys it

Inverse of diffusers' `loaders.single_file_utils`.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from demo.sgm import sgm_layer
from demo.text_encoder import PREFIX

Tensors = dict[str, torch.Tensor]

VAE_LAYERS = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "downsamplers.0.conv": "downsample.conv",
    "upsamplers.0.conv": "upsample.conv",
    "resnets": "block",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPENCLIP_LAYERS = {
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}


def write_single_file(base_folder: Path, file: Path) -> None:
    """Write the base in `base_folder` (SD 1.5's or SDXL's layout) to `file`."""
    tensors = {
        f"model.diffusion_model.{key}": tensor for key, tensor in unet_tensors(base_folder).items()
    }
    for key, tensor in vae_tensors(base_folder).items():
        tensors[f"first_stage_model.{key}"] = tensor
    two_encoders = (base_folder / "text_encoder_2").exists()
    place = "conditioner.embedders.0" if two_encoders else "cond_stage_model"
    for key, tensor in clip_tensors(base_folder / "text_encoder").items():
        tensors[f"{place}.transformer.{key}"] = tensor
    if two_encoders:
        for key, tensor in openclip_tensors(base_folder / "text_encoder_2").items():
            tensors[f"conditioner.embedders.1.model.{key}"] = tensor
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt"})


def unet_tensors(base_folder: Path) -> Tensors:
    """The UNet's, renamed."""
    config = json.loads((base_folder / "unet" / "config.json").read_text(encoding="utf-8"))
    plain = [i for i, kind in enumerate(config["up_block_types"]) if "CrossAttn" not in kind]
    weights = load_file(base_folder / "unet" / "diffusion_pytorch_model.safetensors")
    renamed: Tensors = {}
    for key, tensor in weights.items():
        layer, _, part = key.rpartition(".")
        # Inside of attentions the names are the same.
        renamed[f"{sgm_layer(layer, config['layers_per_block'], plain)}.{part}"] = tensor
    return renamed


def vae_tensors(base_folder: Path) -> Tensors:
    """The autoencoder's, renamed; the attention's linear layers become convolutions."""
    weights = load_file(base_folder / "vae" / "diffusion_pytorch_model.safetensors")
    blocks = sum(key.endswith("resnets.0.norm1.weight") and ".up_blocks." in key for key in weights)
    renamed: Tensors = {}
    for key, tensor in weights.items():
        name = key
        for ours, theirs in VAE_LAYERS.items():
            name = name.replace(ours, theirs)
        name = name.replace("down_blocks.", "down.")
        # The decoder's blocks count from the picture, not from the latents.
        name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{blocks - 1 - int(match[1])}", name)
        is_linear = "attentions" in key and tensor.ndim == 2
        renamed[name] = tensor[:, :, None, None].contiguous() if is_linear else tensor
    return renamed


def clip_tensors(folder: Path) -> Tensors:
    """CLIP's under their own names, and the positions that older transformers saved along."""
    tensors = load_file(folder / "model.safetensors")
    positions = tensors[f"{PREFIX}embeddings.position_embedding.weight"].shape[0]
    tensors[f"{PREFIX}embeddings.position_ids"] = torch.arange(positions)[None]
    return tensors


def openclip_tensors(folder: Path) -> Tensors:
    """CLIP's under OpenCLIP's names: query, key and value in one, the projection transposed."""
    tensors = load_file(folder / "model.safetensors")
    renamed: Tensors = {"text_projection": tensors.pop("text_projection.weight").T.contiguous()}
    for key in [key for key in tensors if ".q_proj." in key]:
        parts = [
            tensors.pop(key.replace("q_proj", name)) for name in ("q_proj", "k_proj", "v_proj")
        ]
        layer, _, part = key.removeprefix(PREFIX).rpartition(".self_attn.q_proj.")
        tensors[f"{PREFIX}{layer}.attn.in_proj_{part}"] = torch.cat(parts)
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        for ours, theirs in OPENCLIP_LAYERS.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed
