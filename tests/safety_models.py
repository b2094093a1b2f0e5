"""A tiny safety checkpoint of the real class whose weights are set by hand: it finds red pictures,
and takes special care of blue ones. And such pictures."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIDE, PATCH, WIDTH, PROJECTION = 32, 8, 32, 8
RED, BLUE = (1.0, -1.0, -1.0), (-1.0, -1.0, 1.0)  # of colors from -1 to 1
NEVER = 2.0  # no cosine is larger
CONCEPT = 7  # the one of seventeen that red pictures are found by


def write_safety_checker(folder: Path, *, red: float = 0.5, blue: float = 0.5) -> Path:
    """`red`, `blue`: thresholds, as cosines of the angle between a picture's mean color and pure
    red or blue, both seen from grey."""
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessorPil

    config = CLIPConfig(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": SIDE,
            "patch_size": PATCH,
            "projection_dim": PROJECTION,
        },
        text_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1},
        projection_dim=PROJECTION,
    )
    model = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name and name.endswith("weight")  # also "pre_layrnorm"
            parameter.fill_(1.0 if norm else 0.0)
        weights = dict(model.named_parameters())
        vision = "vision_model."
        patch = weights[vision + "embeddings.patch_embedding.weight"]
        for channel in range(3):
            patch[channel, channel] = 1 / PATCH**2  # each patch's mean color
        # Without queries and keys every token sees the mean of all.
        attention = vision + "encoder.layers.0.self_attn."
        for part in ("v_proj", "out_proj"):
            weights[f"{attention}{part}.weight"].copy_(torch.eye(WIDTH))
        weights["visual_projection.weight"][:3, :3] = torch.eye(3)
        model.concept_embeds[:, PROJECTION - 1] = 1.0
        model.concept_embeds_weights.fill_(NEVER)
        model.special_care_embeds[:, PROJECTION - 1] = 1.0
        model.special_care_embeds_weights.fill_(NEVER)
        for embeds, thresholds, index, color, threshold in (
            (model.concept_embeds, model.concept_embeds_weights, CONCEPT, RED, red),
            (model.special_care_embeds, model.special_care_embeds_weights, 1, BLUE, blue),
        ):
            embeds[index] = torch.tensor([*color, *[0.0] * (PROJECTION - 3)])
            thresholds[index] = threshold
    model.save_pretrained(folder)
    CLIPImageProcessorPil(
        size=SIDE, crop_size=SIDE, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder


def plain(red: int, green: int, blue: int, side: int = 64) -> NDArray[np.uint8]:
    """A picture of one color, (side, side, 3) uint8."""
    return np.full((side, side, 3), (red, green, blue), np.uint8)


RED_PICTURE, BLUE_PICTURE, GREEN_PICTURE = (
    plain(230, 20, 30),
    plain(10, 20, 240),
    plain(20, 200, 40),
)
