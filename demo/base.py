"""Writes a base model as a diffusers pipeline folder, without loading a pipeline."""

from pathlib import Path
from typing import NamedTuple

import diffusers
import torch

from demo.text_encoder import text_config, write_text_encoder
from demo.tokenizer import EOS, train, write_json, write_tokenizer
from demo.unet import (
    INPAINTING_CHANNELS,
    LATENT_CHANNELS,
    fill_unet,
    sd15_unet,
    sd21_unet,
    sdxl_unet,
)
from demo.vae import build_vae

FAMILIES = ("sd15", "sd21", "sdxl")
OPENCLIP_PAD = "!"

ConfigValue = bool | float | str | None

# What scheduler_config.json says in every family's real repository.
NOISE_SCHEDULE: dict[str, ConfigValue] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
EULER: dict[str, ConfigValue] = {
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}


class BaseRecipe(NamedTuple):
    """What sets one base of a family apart: its weights' seed and its UNet's size and input."""

    name: str
    scale: int
    inpainting: bool

    @property
    def in_channels(self) -> int:
        """Of the UNet: the latents, for inpainting also the mask and the masked latents."""
        return INPAINTING_CHANNELS if self.inpainting else LATENT_CHANNELS


def write_base(
    family: str,
    folder: Path,
    *,
    scale: int = 1,
    name: str | None = None,
    inpainting: bool = False,
) -> None:
    """Write a stand-in for a base of `family` (one of `FAMILIES`) to `folder`.

    `scale` multiplies the UNet's widths; everything else stays as it is. Another `name` (that
    of the family by default) gives other weights of the same shapes, as a community fine-tune
    has them. An `inpainting` base has a UNet of nine channels. Raises ValueError for an
    unknown family or a scale below 1.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, not {scale}")
    recipe = BaseRecipe(name or family, scale, inpainting)
    folder.mkdir(parents=True, exist_ok=True)
    # The constructors draw weights, which are then overwritten: leave the caller's state alone.
    with torch.random.fork_rng(devices=[]):
        if family == "sd15":
            write_sd15(folder, recipe)
        elif family == "sd21":
            write_sd21(folder, recipe)
        else:
            write_sdxl(folder, recipe)


def write_sd15(folder: Path, recipe: BaseRecipe) -> None:
    """Stable Diffusion 1.5: CLIP ViT-L text encoder, padded with the end token."""
    width = 32
    config = text_config(
        width=width,
        layers=2,
        hidden_act="quick_gelu",
        pad_token_id=train().eos_token_id,
        projection_dim=width,
    )
    write_tokenizer(folder / "tokenizer", pad_token=EOS)
    write_text_encoder(folder / "text_encoder", recipe.name, config)
    unet = sd15_unet(width, recipe.scale, recipe.in_channels)
    fill_unet(unet, recipe.name)
    unet.save_pretrained(folder / "unet")
    vae = build_vae(recipe.name, scaling_factor=0.18215, force_upcast=True)
    vae.save_pretrained(folder / "vae")
    write_scheduler(folder, "PNDMScheduler", NOISE_SCHEDULE)
    write_sd_index(folder, inpainting=recipe.inpainting)


def write_sd21(folder: Path, recipe: BaseRecipe) -> None:
    """Stable Diffusion 2.1 base: OpenCLIP text encoder, padded with "!"."""
    width = 48
    config = text_config(
        width=width, layers=2, hidden_act="gelu", pad_token_id=0, projection_dim=width
    )
    write_tokenizer(folder / "tokenizer", pad_token=OPENCLIP_PAD)
    write_text_encoder(folder / "text_encoder", recipe.name, config)
    unet = sd21_unet(width, recipe.scale, recipe.in_channels)
    fill_unet(unet, recipe.name)
    unet.save_pretrained(folder / "unet")
    vae = build_vae(recipe.name, scaling_factor=0.18215, force_upcast=True)
    vae.save_pretrained(folder / "vae")
    write_scheduler(folder, "PNDMScheduler", {**NOISE_SCHEDULE, "prediction_type": "epsilon"})
    write_sd_index(folder, inpainting=recipe.inpainting)


def write_sdxl(folder: Path, recipe: BaseRecipe) -> None:
    """Stable Diffusion XL: both text encoders, the second with a projection."""
    width, width_2 = 32, 64
    config = text_config(
        width=width,
        layers=3,
        hidden_act="quick_gelu",
        pad_token_id=train().eos_token_id,
        projection_dim=width,
    )
    config_2 = text_config(
        width=width_2, layers=3, hidden_act="gelu", pad_token_id=0, projection_dim=width_2
    )
    write_tokenizer(folder / "tokenizer", pad_token=EOS)
    write_tokenizer(folder / "tokenizer_2", pad_token=OPENCLIP_PAD)
    write_text_encoder(folder / "text_encoder", recipe.name, config)
    write_text_encoder(folder / "text_encoder_2", recipe.name, config_2, with_projection=True)
    unet = sdxl_unet(width + width_2, width_2, recipe.scale, recipe.in_channels)
    fill_unet(unet, recipe.name)
    unet.save_pretrained(folder / "unet")
    vae = build_vae(recipe.name, scaling_factor=0.13025, force_upcast=True)
    vae.save_pretrained(folder / "vae")
    write_scheduler(folder, "EulerDiscreteScheduler", NOISE_SCHEDULE | EULER)
    write_sdxl_index(folder, inpainting=recipe.inpainting)


def write_sdxl_index(folder: Path, *, inpainting: bool) -> None:
    """`model_index.json` of SDXL."""
    index: dict[str, object] = {
        "_class_name": (
            "StableDiffusionXLInpaintPipeline" if inpainting else "StableDiffusionXLPipeline"
        ),
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "force_zeros_for_empty_prompt": True,
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if inpainting:
        index["requires_aesthetics_score"] = False
    write_json(folder / "model_index.json", index)


def write_sd_index(folder: Path, *, inpainting: bool) -> None:
    """`model_index.json` of both 1.5 and 2.1, without the safety checker."""
    index = {
        "_class_name": (
            "StableDiffusionInpaintPipeline" if inpainting else "StableDiffusionPipeline"
        ),
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)


def write_scheduler(folder: Path, class_name: str, values: dict[str, ConfigValue]) -> None:
    """`scheduler/scheduler_config.json`."""
    (folder / "scheduler").mkdir(exist_ok=True)
    config = {"_class_name": class_name, "_diffusers_version": diffusers.__version__} | values
    write_json(folder / "scheduler" / "scheduler_config.json", config)
