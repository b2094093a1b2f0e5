"""Which models an adapter file was made for, as its names and shapes tell: for those who read why
it does not fit."""

import re
from collections.abc import Mapping, Sequence

MOTION = "AnimateDiff"
# Other networks, by what only their layers are called. Dots and underscores are the same here.
_NETWORKS = {
    r"double_blocks|single_blocks|single_transformer_blocks": "Flux",
    r"joint_blocks|transformer_transformer_blocks": "Stable Diffusion 3",
    r"blocks_\d+_cross_attn": "Wan",
    r"transformer_blocks_\d+_(ff_context|img_mod|txt_mod)": "a diffusion transformer",
    r"motion_modules": MOTION,
    r"lora_te2_|lora_te3_|clip_g_|text_encoder_2_|label_emb|add_embedding": "sdxl",
}
# Channels of the prompts that the UNet attends to.
_PROMPTS = {768: "sd15", 1024: "sd21", 2048: "sdxl"}


def looks_like(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """The family of models, or the network, that a file's tensors seem to belong to.

    Args:
        shapes: of the tensors, by name.
    """
    flat = {name.replace(".", "_"): shape for name, shape in shapes.items()}
    for pattern, network in _NETWORKS.items():
        if any(re.search(pattern, name) for name in flat):
            return network
    for name, shape in flat.items():
        if re.search(r"attn2_(processor_)?to_[kv]_", name) and len(shape) >= 2:
            found = _PROMPTS.get(shape[1])
            if found is not None:
                return found
    return None
