"""Whether files can be what a model's configuration gives them for, by headers and configurations
alone: what `load` refuses before it reads a weight, and `make check-config` before that."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from configs.app import ModelArgs
from configs.families import FAMILIES, FamilyName
from configs.sources import PICKLES, pickle_refused, published
from deployments.diffusion.engine.models.checkpoints.header import WrongFile, read_header
from deployments.diffusion.engine.models.checkpoints.identity import (
    ADAPTER,
    CHECKPOINT,
    CONTROL_LORA,
    CONTROLNET,
    IP_ADAPTER,
    LCM,
    LLLITE,
    MOTION_ADAPTER,
    T2I_ADAPTER,
    TEXT_ENCODERS,
    TEXTUAL_INVERSION,
    UNET,
    VAE,
    Identity,
    identify,
)
from deployments.diffusion.engine.models.checkpoints.noise import Noise, noise_of

SERVED = ", ".join(FAMILIES)
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# What takes 4 channels of latents and others beside them, by how many there are.
_OTHER_INPUTS = {
    5: "a depth map beside the latents",
    7: "a small picture beside the latents (an upscaler)",
    8: "a picture beside the latents (InstructPix2Pix)",
}
# What is not the variant in the names of a folder's weights.
_PLAIN = re.compile(r"^[^.]*\.?|-\d+-of-\d+|\.?safetensors$")
_LATENTS = 4
INPAINTING_CHANNELS = 9  # latents 4, mask 1, masked picture 4
_IN_CHANNELS = (_LATENTS, INPAINTING_CHANNELS)
PLACES = {
    ADAPTER: "; adapters stand in `loras` or in `tcd_lora`",
    CONTROLNET: "; it stands in `controls`",
    T2I_ADAPTER: "; it stands in `controls`",
    LLLITE: "; it is not read",
    CONTROL_LORA: "; it is not read",
    IP_ADAPTER: "; it stands in `ip_adapter`",
    MOTION_ADAPTER: "; it stands in `motion_adapter`",
    TEXTUAL_INVERSION: "; it stands in `embeddings`",
    "a tiny autoencoder": "; it stands in `preview_vae`",
    VAE: "; another VAE than the checkpoint's stands in `vae.source`",
    UNET: ": it has no text encoders. Give the whole checkpoint, or a diffusers folder",
}


def check_model(args: ModelArgs, checkpoint: Path, configs: Path | None) -> Noise:
    """Looks at a model's checkpoint, a diffusers folder or a single file, and its `vae.source`.

    Args:
        configs: with a file, the folder that describes it; `None`: it is not here.

    Returns how it was trained. Raises `WrongFile` if the model cannot be loaded from it.
    """
    if checkpoint.is_dir():
        check_folder(checkpoint, args.family, args.variant)
        if args.vae.source is None:
            _check_part(checkpoint, "vae", published(checkpoint / "vae", args.variant))
        return noise_of(args, _scheduler(checkpoint), None)
    file = identify(read_header(checkpoint))
    check_checkpoint(file, args.family)
    if "vae" not in file.parts and args.vae.source is None:
        raise WrongFile(
            f"{file.name} has no VAE: name one in vae.source ({FAMILIES[args.family].base}/vae is "
            "that of the family's base)"
        )
    if configs is None:
        return noise_of(args, None, file)
    _check_unet(configs, args.family)
    return noise_of(args, _scheduler(configs), file)


def check_checkpoint(file: Identity, family: FamilyName) -> None:
    """Raises `WrongFile` unless a single file is a whole checkpoint of the family."""
    if file.kind != CHECKPOINT:
        what = file.kind or "nothing that is known"
        raise WrongFile(f"{file.name} is {what}, no checkpoint{PLACES.get(what, '')}")
    if file.family is None:
        raise WrongFile(f"{file.name} is of {file.network}; {SERVED} are served")
    if file.process is not None:
        raise WrongFile(
            f"{file.name} was trained by {file.process}; TCD's steps need the betas of a DDPM"
        )
    if file.family != family:
        raise WrongFile(
            f"{file.name} is a checkpoint of {file.family}, and family is {family}: set family: "
            f"{file.family}"
        )
    if file.in_channels not in _IN_CHANNELS:
        raise WrongFile(_other_input(file.name, file.in_channels))
    _check_numbers(file)
    for part in TEXT_ENCODERS[: FAMILIES[family].text_encoders]:
        if part not in file.parts:
            raise WrongFile(
                f"{file.name} has no {part}: give the whole checkpoint, or a diffusers folder"
            )


def check_vae(file: Identity) -> None:
    """Raises `WrongFile` unless a single file is, or has, a VAE of 4 latent channels."""
    if file.latent_channels is None or file.kind not in (CHECKPOINT, UNET, VAE):
        raise WrongFile(f"{file.name} is {file.kind or 'nothing that is known'}, no VAE")
    if file.latent_channels != _LATENTS:
        raise WrongFile(
            f"{file.name} is a VAE of {file.latent_channels} latent channels, as Stable Diffusion "
            f"3 and Flux have; {SERVED} have {_LATENTS}"
        )
    _check_numbers(file)


def check_kind(file: Identity, *wanted: str) -> None:
    """Raises `WrongFile` unless a single file is of one of these kinds."""
    if file.kind not in wanted:
        what = file.kind or "nothing that is known"
        raise WrongFile(f"{file.name} is {what}, not {' or '.join(wanted)}{PLACES.get(what, '')}")


def check_folder(folder: Path, family: FamilyName, variant: str | None) -> None:
    """Raises `WrongFile` unless a folder is a diffusers pipeline of the family."""
    _check_unet(folder, family)
    encoders = TEXT_ENCODERS[: FAMILIES[family].text_encoders]
    for part in ("unet", *encoders):
        _check_part(folder, part, variant)


def _check_unet(folder: Path, family: FamilyName) -> None:
    """Raises `WrongFile` unless a folder describes a UNet of the family."""
    name, index = folder.name, _read(folder / "model_index.json")
    if index is None:
        raise WrongFile(f"{name} is no diffusers folder: it has no model_index.json{_hint(folder)}")
    unet = _read(folder / "unet" / "config.json")
    if unet is None or unet.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        raise WrongFile(f"{name} is of {index.get('_class_name')}, which has no UNet of {SERVED}")
    found, network = _of_config(unet)
    if found is None:
        raise WrongFile(f"{name} is of {network}; {SERVED} are served")
    if found != family:
        raise WrongFile(
            f"{name} is a checkpoint of {found}, and family is {family}: set family: {found}"
        )
    channels = unet.get("in_channels", _LATENTS)
    if channels not in _IN_CHANNELS:
        raise WrongFile(_other_input(name, channels))


def _check_part(folder: Path, part: str, variant: str | None) -> None:
    inside = folder / part
    if not inside.is_dir():
        raise WrongFile(f"{folder.name} has no {part}")
    weights = sorted(file.name for file in inside.glob("*.safetensors"))
    variants = [_PLAIN.sub("", name) for name in weights]
    if (variant or "") in variants:
        return
    if variant is None and variants:
        raise WrongFile(
            f"{folder.name} has no safetensors in {part} but those of variant {variants[0]}: set "
            f"variant: {variants[0]}"
        )
    pickles = sorted(file.name for file in inside.iterdir() if file.name.endswith(PICKLES))
    says = "" if not pickles else f": {pickle_refused(pickles[0])}"
    of = "" if variant is None else f" of variant {variant}"
    raise WrongFile(f"{folder.name} has no safetensors{of} in {part}{says}")


def _of_config(unet: Mapping[str, object]) -> tuple[FamilyName | None, str | None]:
    """The family of a UNet by its configuration, or what it is where it is of none."""
    if unet.get("time_cond_proj_dim") is not None:
        return None, LCM
    if unet.get("class_embed_type") is not None or unet.get("num_class_embeds") is not None:
        return None, "a network with classes (an upscaler, or an unCLIP)"
    if unet.get("addition_embed_type") == "text_time":
        refines = unet.get("cross_attention_dim") == 1280
        return (None, "the refiner of SDXL") if refines else ("sdxl", None)
    if unet.get("addition_embed_type") is not None:
        return None, f"a network that is told {unet['addition_embed_type']}"
    return "sd21" if unet.get("use_linear_projection") else "sd15", None


def _check_numbers(file: Identity) -> None:
    if file.quantised:
        raise WrongFile(
            f"{file.name} is quantised, with scales beside its numbers, which are not read: give "
            "one in float32, float16, bfloat16 or plain float8"
        )
    if file.dtypes and file.dtypes[0] not in _FLOATS:
        raise WrongFile(f"{file.name} holds numbers of type {file.dtypes[0]}, which are not read")


def _other_input(name: str, channels: object) -> str:
    wants = _OTHER_INPUTS.get(channels, "") if isinstance(channels, int) else ""
    return (
        f"{name}'s UNet has {channels} input channels{wants and f': {wants}'}; 4 and 9 are served"
    )


def _scheduler(folder: Path) -> dict[str, object]:
    config = _read(folder / "scheduler" / "scheduler_config.json")
    if config is None:
        raise WrongFile(f"{folder.name} has no scheduler/scheduler_config.json")
    return config


def _hint(folder: Path) -> str:
    """What else a folder is, as the end of a message."""
    part = _read(folder / "config.json")
    if part is not None and "_class_name" in part:
        return f"; it is a {part['_class_name']} alone"
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    if files:
        return f"; for a single file name it: {files[0]}"
    pickles = sorted(file.name for file in folder.iterdir() if file.name.endswith(PICKLES))
    return f"; {pickle_refused(pickles[0])}" if pickles else ""


def _read(file: Path) -> dict[str, object] | None:
    """A JSON mapping; `None` if there is no such file."""
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WrongFile(f"{file.parent.name}/{file.name} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise WrongFile(f"{file.parent.name}/{file.name} holds no mapping")
    return found
