"""What the published checkpoints are, as their repositories' configurations say it.

Keys that repeat the libraries' defaults are left out, but for one thing: what a published file
does not say is not said here either (SD 1.5's autoencoder has no `force_upcast`).
"""

from dataclasses import dataclass

from configs.families import FamilyName

Config = dict[str, object]


@dataclass(frozen=True)
class Geometry:
    """The shapes of one family's base.

    Attributes:
        side: pixels a side of the square pictures that it was trained on.
        text_encoders: one, or for sdxl two, the second with a projection.
    """

    family: FamilyName
    side: int
    unet: Config
    vae: Config
    text_encoders: tuple[Config, ...]


def geometry(family: FamilyName, *, tiny: bool = False) -> Geometry:
    """The base of a family; `tiny`, of sd15 and sdxl: the same blocks, a few channels wide."""
    return (TINY if tiny else PUBLISHED)[family]


CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

SD15_UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP],
}
SD21_UNET = SD15_UNET | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SDXL_UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": [CROSS_UP, CROSS_UP, "UpBlock2D"],
    "use_linear_projection": True,
}
SD15_VAE: Config = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SDXL_VAE = SD15_VAE | {"force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
CLIP_L: Config = {
    "architectures": ["CLIPTextModel"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
OPENCLIP_H = CLIP_L | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
OPENCLIP_G = CLIP_L | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}

SD15 = Geometry("sd15", 512, SD15_UNET, SD15_VAE, (CLIP_L,))
SDXL = Geometry("sdxl", 1024, SDXL_UNET, SDXL_VAE, (CLIP_L, OPENCLIP_G))
SD21 = Geometry("sd21", 512, SD21_UNET, SD15_VAE, (OPENCLIP_H,))
PUBLISHED: dict[FamilyName, Geometry] = {"sd15": SD15, "sd21": SD21, "sdxl": SDXL}

TINY_CLIP: Config = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "projection_dim": 32,
}
TINY_VAE: Config = {"block_out_channels": [32, 32, 64, 64]}
TINY: dict[FamilyName, Geometry] = {
    "sd15": Geometry(
        "sd15",
        64,
        SD15_UNET | {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 32},
        SD15_VAE | TINY_VAE,
        (CLIP_L | TINY_CLIP,),
    ),
    "sdxl": Geometry(
        "sdxl",
        64,
        SDXL_UNET
        | {
            "addition_time_embed_dim": 8,
            "attention_head_dim": [1, 2, 2],
            "block_out_channels": [32, 64, 64],
            "cross_attention_dim": 96,
            "projection_class_embeddings_input_dim": 6 * 8 + 64,
            "transformer_layers_per_block": [1, 1, 2],
        },
        SDXL_VAE | TINY_VAE,
        (CLIP_L | TINY_CLIP, OPENCLIP_G | TINY_CLIP | {"hidden_size": 64, "projection_dim": 64}),
    ),
}
