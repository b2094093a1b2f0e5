"""What a single file of weights is, as its header tells: no number of it is read."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from configs.app import PredictionType
from configs.families import FamilyName
from deployments.diffusion.engine.models.checkpoints.header import Header, Shape

Part = Literal["unet", "vae", "text_encoder", "text_encoder_2"]
Process = Literal["EDM", "flow matching"]
TEXT_ENCODERS: tuple[Part, ...] = ("text_encoder", "text_encoder_2")
LLLITE, CONTROL_LORA = "a ControlNet-LLLite", "a Control-LoRA"
LCM = "a latent consistency model, whose UNet is told the guidance"
# How the names of a checkpoint's parts begin.
PREFIXES: Mapping[Part, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": (
        "cond_stage_model.",
        "conditioner.embedders.0.",
        "text_encoders.clip_l.",
        "text_encoders.clip_h.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
}
CHECKPOINT, UNET, VAE = "a checkpoint", "a UNet alone", "a VAE"
ADAPTER, CONTROLNET, T2I_ADAPTER = "an adapter", "a ControlNet", "a T2I-Adapter"
IP_ADAPTER, MOTION_ADAPTER = "an IP-Adapter", "a motion adapter"
TEXTUAL_INVERSION = "a textual inversion"
# The first that fits. What changes UNets, or steers them, repeats their names, and comes first.
_KINDS = {
    r"^(image_proj|ip_adapter)\.": IP_ADAPTER,
    r"^lllite_": LLLITE,
    r"^lora_controlnet$": CONTROL_LORA,
    r"lora[._](down|up|mid|[ABab])\b|\.lora\.|hada_w|lokr_w|dora_scale|oft_|\.diff(_b)?$"
    r"|\.[wb]_norm$": ADAPTER,
    r"^control_model\.|^input_hint_block\.|^controlnet_|^zero_convs\.": CONTROLNET,
    r"motion_modules\.": MOTION_ADAPTER,
    r"^(adapter\.)?body\.\d+\.(in_conv|block1|resnets)\b": T2I_ADAPTER,
    r"^(model\.diffusion_model\.)?input_blocks\.0\.0\.": UNET,
    r"^model_ema\.diffusion_model": "EMA weights alone",
    r"^down_blocks\.\d+\.(resnets|attentions)\.": "a UNet in diffusers' names, part of a folder",
    r"^(first_stage_model\.|vae\.)?(en|de)coder\.(down|up|mid)(_blocks?)?\.": VAE,
    r"^(en|de)coder\.layers\.|^taesd_|^\d+\.conv\.\d\.": "a tiny autoencoder",
    r"^(vision_model|visual)\.": "an image encoder",
    r"(^|\.)(text_model\.|encoder\.layers|transformer\.resblocks|encoder\.block)\b": (
        "a text encoder alone"
    ),
    r"^(emb_params|clip_[lg]|<.*>)$": TEXTUAL_INVERSION,
    r"^\d+\.\d+\.linear": "a hypernetwork",
    r"^(conv_first|RRDB_trunk|body\.\d+\.rdb1|model\.\d+\.(sub|weight))\b": "an upscaler",
}
# Networks that are none of ours, by what only their tensors are called.
_NETWORKS = {
    r"joint_blocks\.": "Stable Diffusion 3",
    r"double_blocks\.|single_transformer_blocks\.": "Flux or one of its kin",
    r"clip_txt_mapper|\.channelwise\.": "Stable Cascade",
    r"adaLN|scale_shift_table|cap_embedder|caption_projection|patchify|^transformer_blocks\."
    r"|diffusion_model\.(blocks|layers|txt_in)\.": "a diffusion transformer",
}
_EDM = re.compile(r"^edm_(mean|std|vpred)\b", re.MULTILINE)
_QUANTISED = re.compile(
    r"^scaled_fp8$|\.(scale_weight|weight_scale|absmax|quant_map|qweight|SCB|comfy_quant)$"
    r"|\.quant_state\.",
    re.MULTILINE,
)
_PROMPTS: Mapping[int, FamilyName] = {768: "sd15", 1024: "sd21", 2048: "sdxl"}
_TRANSFORMER_BLOCKS: Mapping[FamilyName, int] = {"sd15": 16, "sd21": 16, "sdxl": 70}
_REFINER_CHANNELS = 384


@dataclass(frozen=True)
class Identity:
    """A file as its names, shapes, types and metadata tell.

    Attributes:
        kind: in words, with their article; `None`: nothing that is known.
        family: of a checkpoint's UNet, where it is one that is served.
        network: what it is where it is of no family, in words.
        process: how it was trained, where that was on no table of betas.
        prediction_type: what it says that its UNet was trained to say; `None`: nothing.
        zero_snr: whether it says that its last timestep is noise alone.
        in_channels: of its UNet.
        latent_channels: of its VAE.
        parts: of a checkpoint, those that are in it.
        ema: whether averaged weights stand beside the plain ones.
        quantised: whether its numbers mean nothing without scales beside them.
        dtypes: of its numbers, in safetensors' words, the most frequent first.
    """

    name: str
    kind: str | None
    family: FamilyName | None
    network: str | None
    process: Process | None
    prediction_type: PredictionType | None
    zero_snr: bool
    in_channels: int | None
    latent_channels: int | None
    parts: frozenset[Part]
    ema: bool
    quantised: bool
    dtypes: tuple[str, ...]
    nbytes: int


def identify(header: Header) -> Identity:
    """What a file is."""
    shapes = header.shapes
    names = "\n".join(shapes)
    parts = frozenset(
        part for part, prefixes in PREFIXES.items() if any(n.startswith(prefixes) for n in shapes)
    )
    kind = _first(_KINDS, names)
    unet = dict(_unet(shapes)) if kind == UNET else {}
    family, network = _of_unet(unet) if unet else (None, None)
    if kind in (None, UNET, VAE) and not unet:
        network = _first(_NETWORKS, names)
    if network is not None or (kind == UNET and parts - {"unet"}):
        kind = CHECKPOINT
    return Identity(
        name=header.name,
        kind=kind,
        family=family,
        network=network,
        process=_process(header, names),
        prediction_type=_prediction_type(header),
        zero_snr="ztsnr" in shapes,
        in_channels=_channels_in(unet.get("input_blocks.0.0.weight", ())),
        latent_channels=_latent_channels(shapes),
        parts=parts,
        ema=any(name.startswith("model_ema.") for name in shapes),
        quantised=_QUANTISED.search(names) is not None,
        dtypes=tuple(dtype for dtype, _ in Counter(header.dtypes.values()).most_common()),
        nbytes=header.nbytes,
    )


def _first(table: Mapping[str, str], names: str) -> str | None:
    """The words of the first pattern that is found in a name, one a line."""
    found = (words for pattern, words in table.items() if re.search(pattern, names, re.MULTILINE))
    return next(found, None)


def _unet(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
    """The tensors of a UNet, by their names in it."""
    (prefix,) = PREFIXES["unet"]
    bare = not any(name.startswith(prefix) for name in shapes)
    for name, shape in shapes.items():
        if bare or name.startswith(prefix):
            yield name.removeprefix(prefix), shape


def _of_unet(unet: Mapping[str, Shape]) -> tuple[FamilyName | None, str | None]:
    """The family of a UNet, or what it is where it is of none."""
    prompts = [s for n, s in unet.items() if n.endswith("attn2.to_k.weight") and len(s) == 2]
    into = [s for n, s in unet.items() if n.endswith(".1.proj_in.weight")]
    first = unet.get("input_blocks.0.0.weight", ())
    if len(first) != 4 or not prompts or not into:
        return None, "a UNet without prompts or without its first layer"
    if "time_embed.cond_proj.weight" in unet:
        return None, LCM
    if "label_emb.weight" in unet:
        return None, "the x4 upscaler of Stable Diffusion 2"
    width = prompts[0][1]
    labelled = "label_emb.0.0.weight" in unet
    if labelled and first[0] == _REFINER_CHANNELS:
        return None, "the refiner of SDXL"
    if labelled and width in (768, 1024):
        return None, "an unCLIP of Stable Diffusion 2"
    # Small ones of a family's make have other widths: their blocks tell.
    family: FamilyName = "sdxl" if labelled else "sd21" if len(into[0]) == 2 else "sd15"
    family = _PROMPTS.get(width, family)
    if width in _PROMPTS and len(prompts) != _TRANSFORMER_BLOCKS[family]:
        return None, f"a UNet like {family}'s with other blocks (SSD-1B, BK-SDM and the like)"
    return family, None


def _process(header: Header, names: str) -> Process | None:
    if _EDM.search(names):
        return "EDM"
    return "flow matching" if _says(header).startswith(("rf", "flow")) else None


def _prediction_type(header: Header) -> PredictionType | None:
    if "v_pred" in header.shapes:
        return "v_prediction"
    says = _says(header)
    if says.startswith("v") or "768-v" in header.metadata.get("modelspec.architecture", ""):
        return "v_prediction"
    return "epsilon" if says.startswith("eps") else None


def _says(header: Header) -> str:
    """What ModelSpec's metadata says of the prediction."""
    keys = ("modelspec.prediction_type", "modelspec.predict_key")
    return next((header.metadata[key].lower() for key in keys if key in header.metadata), "")


def _latent_channels(shapes: Mapping[str, Shape]) -> int | None:
    """Channels that a VAE's decoder takes."""
    for prefix in ("", *PREFIXES["vae"]):
        found = _channels_in(shapes.get(f"{prefix}decoder.conv_in.weight", ()))
        if found is not None:
            return found
    return None


def _channels_in(kernel: Shape) -> int | None:
    """Channels that a convolution takes; `None` for what is none."""
    return kernel[1] if len(kernel) == 4 else None
