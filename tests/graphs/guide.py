"""The guide's config with the demo's stand-ins for weights: all else stays as operators deploy it,
but for what keeps it on this machine."""

from collections.abc import Collection
from typing import Any

import yaml

from demo.standins import MODELS
from tests.graphs.nodes import ROOT

GUIDE = ROOT / "configs" / "production" / "guide.yaml"
CHECKPOINTS = {"sdxl-inpainting": "sdxl-inpainting", "animagine": "sdxl-animagine"}
ENCODERS = {"vit-h": "models", "vit-bigg": "sdxl_models"}
MOTION = ("motion_loras", "motion-loras")
ADAPTERS = {"vit-h": "ip-adapter_sd15", "vit-bigg": "ip-adapter_sdxl"}


def guide(models: Collection[str] | None = None) -> dict[str, Any]:
    """All of its applications, or `tcd` and these models."""
    whole: dict[str, Any] = yaml.safe_load(GUIDE.read_text())
    service, *others = whole["applications"]
    args = service["args"]
    args["depth"]["checkpoint"] = str(MODELS / "dpt-hybrid")
    for name, encoder in args["image_encoders"].items():
        encoder["checkpoint"] = str(MODELS / "ip-adapter" / ENCODERS[name] / "image_encoder")
    chosen = [each for each in others if models is None or each["args"]["name"] in models]
    for each in chosen:
        _stand_in(each["args"])
        for deployment in each["deployments"]:
            config = deployment["user_config"]
            for kind, folder in (("loras", f"loras/{each['args']['family']}"), MOTION):
                for name in config.get(kind, ()):
                    config[kind][name] = str(MODELS / folder / f"{name}.safetensors")
    return {"applications": [service, *chosen]}


def _stand_in(args: dict[str, Any]) -> None:
    family = args["family"]
    args |= {
        "checkpoint": str(MODELS / CHECKPOINTS.get(args["name"], family)),
        "tcd_lora": str(MODELS / "tcd-lora" / family),
        "variant": None,
        "dtype": "float32",
        "device": "cpu",
    }
    for kind in args.get("controls", ()):
        args["controls"][kind] = str(MODELS / "controlnet" / family / kind)
    if adapter := args.get("ip_adapter"):
        encoder = adapter["image_encoder"]
        file = f"{ENCODERS[encoder]}/{ADAPTERS[encoder]}.safetensors"
        adapter["adapter"] = str(MODELS / "ip-adapter" / file)
    if "motion_adapter" in args:
        args["motion_adapter"] = str(MODELS / "motion-adapter" / family)


def deployments(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every deployment of a config, by application and name: `tcd/Canny`."""
    return {
        f"{application['name']}/{deployment['name']}": deployment
        for application in config["applications"]
        for deployment in application["deployments"]
    }
