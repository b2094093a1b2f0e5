"""Writes a random AnimateDiff motion adapter that fits a base folder, and motion LoRAs for it."""

from pathlib import Path

import torch
from diffusers import MotionAdapter
from safetensors.torch import save_file

from demo.init import fill, generator
from demo.lora import ATTENTION, layers
from demo.unet import LATENT_CHANNELS, NORM_GROUPS, unet_of

MAX_FRAMES = 24  # as in guoyww/animatediff-motion-adapter-v1-5
# Sharp attention between frames, and a strong say in the hidden states.
GAINS = {
    "to_q": 1.8,
    "to_k": 1.8,
    "to_v": 1.5,
    "to_out": 1.5,
}
MOTIONS = ("zoom-in", "pan-left")
LORA_RANK = 4
LORA_STRENGTH = 0.6


def write_motion_adapter(base_folder: Path, folder: Path) -> None:
    """Write a motion adapter for the base in `base_folder`, of SD 1.5's shape, to `folder`."""
    unet = unet_of(base_folder)
    # The constructor draws weights, which are then overwritten: leave the caller's state alone.
    with torch.random.fork_rng(devices=[]):
        adapter = MotionAdapter(
            block_out_channels=unet.config.block_out_channels,
            motion_layers_per_block=unet.config.layers_per_block,
            motion_num_attention_heads=8,
            motion_norm_num_groups=NORM_GROUPS,
            motion_max_seq_length=MAX_FRAMES,
            use_motion_mid_block=True,
        )
    fill(adapter, generator("motion-adapter"), GAINS)
    spare_the_latents(adapter)
    adapter.save_pretrained(folder)


@torch.no_grad()
def spare_the_latents(adapter: MotionAdapter) -> None:
    """Add nothing to the channels in which the UNet carries the latents (`demo.unet`)."""
    layer = adapter.up_blocks[-1].motion_modules[-1].proj_out
    layer.weight[: 2 * LATENT_CHANNELS] = 0
    layer.bias[: 2 * LATENT_CHANNELS] = 0


def write_motion_lora(name: str, adapter_folder: Path, file: Path) -> None:
    """Write the motion LoRA `name` (one of `MOTIONS`) for the adapter in `adapter_folder`.

    Its keys are those of guoyww/animatediff-motion-lora-zoom-in, for example
    `unet.mid_block.motion_modules.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight`.
    Raises ValueError for an unknown name.
    """
    if name not in MOTIONS:
        raise ValueError(f"name must be one of {', '.join(MOTIONS)}, not {name!r}")
    source = generator("motion-lora", name)
    tensors: dict[str, torch.Tensor] = {}
    for layer in layers(adapter_folder / "diffusion_pytorch_model.safetensors", ATTENTION):
        width, fan_in = layer.shape
        down = torch.empty(LORA_RANK, fan_in).normal_(std=fan_in**-0.5, generator=source)
        up = torch.empty(width, LORA_RANK)
        up.normal_(std=LORA_STRENGTH / LORA_RANK**0.5, generator=source)
        attention, projection = layer.name.removesuffix(".0").rsplit(".", 1)
        key = f"unet.{attention}.processor.{projection}_lora"
        tensors[f"{key}.down.weight"] = down
        tensors[f"{key}.up.weight"] = up
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata={"format": "pt"})
