"""Which stand-in lies where below the models' folder."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from demo import (
    base,
    controlnet,
    depth,
    image_encoder,
    ip_adapter,
    lora,
    merged,
    motion,
    single_file,
)
from demo.standins import MERGED

INPAINTING_FAMILIES = ("sd15", "sdxl")
SINGLE_FILE_FAMILIES = ("sd15", "sdxl")


def write_everything(out: Path) -> Iterator[Path]:
    """Write one folder or file after the other, and yield each once it is complete."""
    for family in base.FAMILIES:
        yield from write_family(family, out)
    for family in INPAINTING_FAMILIES:
        folder = out / f"{family}-inpainting"
        base.write_base(family, folder, name=folder.name, inpainting=True)
        yield folder
    yield from write_ip_adapters(out)
    depth_folder = out / "dpt-hybrid"
    depth.write_depth_estimator(depth_folder)
    yield depth_folder
    yield from write_motion(out)
    animagine = out / "sdxl-animagine"
    base.write_base("sdxl", animagine, name=animagine.name)
    yield animagine
    for family in SINGLE_FILE_FAMILIES:
        file = out / f"{family}-community.safetensors"
        write_community(family, file)
        yield file
    yield from write_merged(out)


def write_merged(out: Path) -> Iterator[Path]:
    """The fine-tunes that are made of trained models."""
    for one in MERGED:
        merged.write_merged(one.base, one.style, out / one.file)
        yield out / one.file


def write_family(family: str, out: Path, *, scale: int = 1) -> Iterator[Path]:
    """The base of `family`, `scale` times wider than the demo's, and what is made to fit it."""
    base_folder = out / family
    base.write_base(family, base_folder, scale=scale)
    yield base_folder
    tcd_folder = out / "tcd-lora" / family
    lora.write_tcd_lora(family, base_folder, tcd_folder / "pytorch_lora_weights.safetensors")
    yield tcd_folder
    style_folder = out / "loras" / family
    for name in lora.STYLES:
        lora.write_style_lora(name, family, base_folder, style_folder / f"{name}.safetensors")
    yield style_folder
    control_folder = out / "controlnet" / family
    for kind in controlnet.KINDS:
        controlnet.write_controlnet(kind, family, base_folder, control_folder / kind)
    yield control_folder


def write_ip_adapters(out: Path) -> Iterator[Path]:
    """The image encoders and adapters for the bases in `out`, laid out as h94/IP-Adapter."""
    folder = out / "ip-adapter"
    encoders = {"vit-h": "models/image_encoder", "vit-bigg": "sdxl_models/image_encoder"}
    for name, place in encoders.items():
        image_encoder.write_image_encoder(name, folder / place)
    for name, adapter in ip_adapter.ADAPTERS.items():
        models = "sdxl_models" if adapter.family == "sdxl" else "models"
        file = folder / models / f"{name}.safetensors"
        ip_adapter.write_ip_adapter(name, out / adapter.family, file)
    yield folder


def write_motion(out: Path) -> Iterator[Path]:
    """The motion adapter for the sd15 base in `out`, and its LoRAs."""
    adapter_folder = out / "motion-adapter" / "sd15"
    motion.write_motion_adapter(out / "sd15", adapter_folder)
    yield adapter_folder
    lora_folder = out / "motion-loras"
    for name in motion.MOTIONS:
        motion.write_motion_lora(name, adapter_folder, lora_folder / f"{name}.safetensors")
    yield lora_folder


def write_community(family: str, file: Path) -> None:
    """A fine-tune of `family` as one file, named like it; its folder is not kept."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base.write_base(family, folder, name=file.stem)
        single_file.write_single_file(folder, file)
