"""The stages of the recipe in their order, and for how long each trains."""

from demo.train.adapter_stages import (
    camera_stage,
    train_depth,
    train_encoder,
    train_inpainting,
    train_ip_adapter,
    train_motion,
)
from demo.train.base_stages import base_stage, control_stage, style_stage, tcd_stage, train_vae
from demo.train.controls import CONTROLS
from demo.train.motion import CAMERA_MOTIONS
from demo.train.stage import Stage
from demo.train.workshop import Plan
from demo.world.style import STYLES

TCD_PLAN = Plan(350, 32, 1e-3, 15, ema_decay=0.98)
STYLE_PLAN = Plan(300, 32, 1e-3, 3, ema_decay=0.98)
CONTROL_PLAN = Plan(1500, 32, 1e-3, 12, ema_decay=0.995)


def family_stages(family: str) -> list[Stage]:
    """A base and what is made to fit it."""
    stages = [
        Stage(family, f"{family}/unet", Plan(2400, 32, 1e-3, 25), base_stage(family)),
        Stage(f"tcd-{family}", f"tcd-lora/{family}", TCD_PLAN, tcd_stage(family)),
    ]
    for style in STYLES:
        file = f"loras/{family}/{style}.safetensors"
        stages.append(Stage(f"{style}-{family}", file, STYLE_PLAN, style_stage(family, style)))
    for control in CONTROLS:
        folder = f"controlnet/{family}/{control}"
        run = control_stage(family, control)
        stages.append(Stage(f"{control}-{family}", folder, CONTROL_PLAN, run))
    return stages


STAGES: list[Stage] = [
    Stage("vae", "sd15/vae", Plan(4500, 8, 1.5e-3, 15, bfloat16=True), train_vae),
    *family_stages("sd15"),
    Stage(
        "image-encoder", "ip-adapter/models/image_encoder", Plan(2000, 32, 1e-3, 10), train_encoder
    ),
    Stage(
        "ip-adapter-sd15",
        "ip-adapter/models/ip-adapter_sd15.safetensors",
        Plan(1200, 32, 1e-3, 10, ema_decay=0.995),
        train_ip_adapter,
    ),
    Stage(
        "inpainting-sd15",
        "sd15-inpainting/unet",
        Plan(1500, 32, 5e-4, 12, ema_decay=0.995),
        train_inpainting,
    ),
    Stage("depth", "dpt-hybrid", Plan(1500, 8, 1e-3, 15, ema_decay=0.995), train_depth),
    Stage("motion", "motion-adapter/sd15", Plan(1500, 8, 1e-3, 25, ema_decay=0.995), train_motion),
    *(
        Stage(
            name,
            f"motion-loras/{name}.safetensors",
            Plan(200, 8, 1e-3, 4, ema_decay=0.98),
            camera_stage(name),
        )
        for name in CAMERA_MOTIONS
    ),
    *family_stages("sdxl"),
]
