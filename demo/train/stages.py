"""The stages of the recipe in their order, and for how long each trains."""

from collections.abc import Sequence
from dataclasses import replace

from demo.train.adapter_stages import (
    camera_stage,
    encoder_stage,
    inpainting_stage,
    ip_adapter_stage,
    train_depth,
    train_motion,
)
from demo.train.base_stages import (
    base_stage,
    control_stage,
    style_stage,
    tcd_stage,
    text_stage,
    train_decoder,
    train_vae,
)
from demo.train.controls import CONTROLS, Control
from demo.train.stage import Stage
from demo.train.workshop import Plan
from demo.world.camera import CAMERA_MOTIONS
from demo.world.style import STYLES

TEXT_PLAN = Plan(1200, 64, 2e-3, 1, ema_decay=0.99)
BASE_PLAN = Plan(3800, 64, 1e-3, 25, bfloat16=True)
TCD_PLAN = Plan(600, 64, 1e-3, 10, ema_decay=0.98)
STYLE_PLAN = Plan(600, 32, 1e-3, 3, ema_decay=0.98, bfloat16=True)
CONTROL_PLAN = Plan(800, 64, 1e-3, 9, ema_decay=0.995, bfloat16=True)
ENCODER_PLAN = Plan(5000, 32, 1e-3, 16)
IP_ADAPTER_PLAN = Plan(2400, 64, 1e-3, 17, ema_decay=0.995)
INPAINTING_PLAN = Plan(800, 64, 5e-4, 6, ema_decay=0.995, bfloat16=True)
DECODER_PLAN = Plan(3000, 8, 1e-3, 45, ema_decay=0.995)


def family_stages(family: str, controls: Sequence[Control] = ()) -> list[Stage]:
    """A base and what is made to fit it."""
    stages = [
        Stage(f"text-{family}", f"{family}/text_encoder", TEXT_PLAN, text_stage(family)),
        Stage(family, f"{family}/unet", BASE_PLAN, base_stage(family), goes_on=True),
        Stage(f"tcd-{family}", f"tcd-lora/{family}", TCD_PLAN, tcd_stage(family), goes_on=True),
    ]
    for style in STYLES:
        file = f"loras/{family}/{style}.safetensors"
        run = style_stage(family, style)
        stages.append(Stage(f"{style}-{family}", file, STYLE_PLAN, run, goes_on=True))
    for control in controls:
        folder = f"controlnet/{family}/{control}"
        run = control_stage(family, control)
        stages.append(Stage(f"{control}-{family}", folder, CONTROL_PLAN, run, goes_on=True))
    return stages


def picture_stages(family: str, encoder: str, folder: str) -> list[Stage]:
    """What a base takes pictures with: an image encoder with its IP-Adapter, laid out as
    h94/IP-Adapter, and the inpainting UNet."""
    place = f"ip-adapter/{folder}"
    return [
        Stage(
            f"image-encoder-{family}",
            f"{place}/image_encoder",
            ENCODER_PLAN,
            encoder_stage(encoder),
            goes_on=True,
        ),
        Stage(
            f"ip-adapter-{family}",
            f"{place}/ip-adapter_{family}.safetensors",
            IP_ADAPTER_PLAN,
            ip_adapter_stage(family, encoder),
            goes_on=True,
        ),
        Stage(
            f"inpainting-{family}",
            f"{family}-inpainting/unet",
            INPAINTING_PLAN,
            inpainting_stage(family),
            goes_on=True,
        ),
    ]


def taking(times: int, stages: Sequence[Stage]) -> list[Stage]:
    """The same, which take so many times the minutes of their plans."""
    return [
        replace(stage, plan=replace(stage.plan, minutes=times * stage.plan.minutes))
        for stage in stages
    ]


STAGES: list[Stage] = [
    Stage("vae", "sd15/vae", Plan(6600, 16, 2e-3, 27, bfloat16=True), train_vae, goes_on=True),
    *family_stages("sd15", CONTROLS),
    *picture_stages("sd15", "vit-h", "models"),
    Stage(
        "depth", "dpt-hybrid", Plan(1500, 8, 1e-3, 15, ema_decay=0.995), train_depth, goes_on=True
    ),
    Stage(
        "motion",
        "motion-adapter/sd15",
        Plan(8000, 8, 1e-3, 75, ema_decay=0.995, bfloat16=True),
        train_motion,
        goes_on=True,
    ),
    *(
        Stage(
            name,
            f"motion-loras/{name}.safetensors",
            Plan(1350, 8, 2e-3, 16, ema_decay=0.99, bfloat16=True),
            camera_stage(name),
            goes_on=True,
        )
        for name in CAMERA_MOTIONS
    ),
    Stage("vae-sdxl", "sdxl/vae", DECODER_PLAN, train_decoder, goes_on=True),
    *taking(
        2,
        [
            *family_stages("sdxl", CONTROLS),
            *picture_stages("sdxl", "vit-bigg", "sdxl_models"),
            *family_stages("sd21"),
        ],
    ),
]
