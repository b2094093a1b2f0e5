"""Small CLIP vision encoders with projection, as IP-Adapters take them."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from demo.init import fill, generator
from demo.tokenizer import write_json

IMAGE_SIZE = 224
PATCH_SIZE = 14
# Strong attention, so that the class token, the same for all pictures, takes up what it sees.
GAINS = {
    "position_embedding": 0.3,
    "q_proj": 1.5,
    "k_proj": 1.5,
    "v_proj": 2.0,
    "out_proj": 2.0,
}
PREPROCESSOR = {
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": IMAGE_SIZE},
}


class EncoderShape(NamedTuple):
    """What tells one encoder from the other."""

    hidden_size: int
    projection_dim: int
    layers: int


# ViT-H serves sd15 and the "vit-h" adapters of sdxl; bigG the other one of sdxl.
ENCODERS = {"vit-h": EncoderShape(48, 32, 3), "vit-bigg": EncoderShape(64, 40, 3)}


def vision_config(shape: EncoderShape) -> CLIPVisionConfig:
    """The architecture of IP-Adapter's encoders."""
    return CLIPVisionConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=2 * shape.hidden_size,
        projection_dim=shape.projection_dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="gelu",
        dtype="float32",
    )


def write_image_encoder(name: str, folder: Path) -> None:
    """Write the encoder `name` (one of `ENCODERS`): weights, configuration, preprocessor's too.

    Raises ValueError for an unknown name.
    """
    if name not in ENCODERS:
        raise ValueError(f"name must be one of {', '.join(ENCODERS)}, not {name!r}")
    config = vision_config(ENCODERS[name])
    config.architectures = [CLIPVisionModelWithProjection.__name__]
    # The constructor draws weights, which are then overwritten: leave the caller's state alone.
    with torch.random.fork_rng(devices=[]):
        model = CLIPVisionModelWithProjection(config)
    fill(model, generator("image-encoder", name), GAINS)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
