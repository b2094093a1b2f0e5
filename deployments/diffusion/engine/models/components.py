"""The models of one checkpoint, loaded and fused. diffusers and transformers stop here."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from configs.app import CompileMode, ModelArgs, WarmSize
from configs.families import FAMILIES, Family
from configs.sources import fetch
from deployments.diffusion.engine.adapters.bank import Bank
from deployments.diffusion.engine.adapters.fuse import fuse
from deployments.diffusion.engine.adapters.reader import LoraReader
from deployments.diffusion.engine.models.attention import call_processors_directly
from deployments.diffusion.engine.models.checkpoints.checkpoint import layers_of, read_checkpoint
from deployments.diffusion.engine.models.checkpoints.fitness import INPAINTING_CHANNELS
from deployments.diffusion.engine.models.checkpoints.identity import TEXT_ENCODERS
from deployments.diffusion.engine.models.compiler import CompiledBlock, Compiler, inductor
from deployments.diffusion.engine.models.controls.controls import Controls, read_controls
from deployments.diffusion.engine.models.embeddings import Words, add_embeddings
from deployments.diffusion.engine.models.image_attention import ImageAttention
from deployments.diffusion.engine.models.ip_adapter import (
    IpAdapter,
    cross_attentions,
    load_ip_adapters,
)
from deployments.diffusion.engine.models.motion.motion import Motion, load_motion
from deployments.diffusion.engine.models.schedule import Schedule
from deployments.diffusion.engine.models.vae import TORCH_DTYPES, Vae, read_preview_vae
from deployments.diffusion.engine.policy.capabilities import Capabilities
from deployments.diffusion.engine.policy.spec import MAX_WINDOWS


@dataclass(frozen=True)
class Components:
    """Everything that makes images of one checkpoint, on one device.

    Attributes:
        unet: with the TCD-LoRA fused into its weights.
        preview_vae: decodes partial images; `vae` itself where the model has no other.
        text_encoders: one, or for sdxl two, with their tokenizers.
        words: of textual inversions, with their ids of each text encoder.
        zero_empty_negative: an absent negative prompt is all zeros, not the empty text.
        controls: the ControlNets and T2I-Adapters that requests may name.
        ip_adapters: those that requests may name; the first is that of requests that name none.
        image_attention: the UNet's to the pictures that they read; `None`: the model has none.
        motion: what makes videos, if the model makes any.
        motion_schedule: of videos.
        banks: style adapters by model name.
        lora_reader: reads style adapters for these models.
        compile: how calls of the UNet are to be made (see `ModelArgs.compile`).
        compiler: of its blocks; `None`: they run eager.
        warm_sizes: what is drawn before requests come.
    """

    family: Family
    device: torch.device
    dtype: torch.dtype
    unet: UNet2DConditionModel
    vae: Vae
    preview_vae: Vae
    tokenizers: tuple[CLIPTokenizer, ...]
    text_encoders: tuple[nn.Module, ...]
    words: Words
    schedule: Schedule
    zero_empty_negative: bool
    controls: Controls
    ip_adapters: dict[str, IpAdapter]
    image_attention: ImageAttention | None
    motion: Motion | None
    motion_schedule: Schedule
    banks: dict[str, Bank]
    lora_reader: LoraReader
    compile: CompileMode
    compiler: Compiler | None
    warm_sizes: tuple[WarmSize, ...]

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that the UNet denoises."""
        return self.vae.latent_channels

    @property
    def takes_mask(self) -> bool:
        """Whether the UNet was trained to inpaint: it sees mask and masked picture."""
        return int(self.unet.config.in_channels) == INPAINTING_CHANNELS

    def schedule_of(self, frames: int | None) -> Schedule:
        """Of a video of so many frames, or of an image."""
        return self.schedule if frames is None else self.motion_schedule

    @property
    def max_prompt_tokens(self) -> int:
        """Text tokens that every text encoder reads, begin and end marks not counted."""
        window = min(int(tokenizer.model_max_length) for tokenizer in self.tokenizers) - 2
        return MAX_WINDOWS * window

    @property
    def text_banks(self) -> tuple[str, ...]:
        """Names of the banks of text encoders."""
        return TEXT_ENCODERS[: len(self.text_encoders)]

    @property
    def capabilities(self) -> Capabilities:
        """What requests may ask of these models."""
        return Capabilities(
            takes_mask=self.takes_mask,
            controls=self.controls.kinds,
            image_prompts={name: adapter.reads for name, adapter in self.ip_adapters.items()},
            makes_videos=self.motion is not None,
            max_steps=self.schedule.max_steps,
            max_clip_skip=_skippable(self.text_encoders),
            told_size=self.family.text_encoders == 2,
        )


def load(args: ModelArgs) -> Components:
    """Loads a checkpoint and fuses its TCD-LoRA.

    Raises `configs.sources.SourceError` if weights cannot be fetched, `LoraError` if the
    TCD-LoRA does not fit, `OSError` or `ValueError` from the libraries if other weights are not
    what the family needs, `ValueError` if graphs are asked for where there is no CUDA device.
    """
    disable_progress_bar()
    family = FAMILIES[args.family]
    device, dtype = _device(args.device), TORCH_DTYPES[args.dtype]
    if args.compile == "graphs" and device.type != "cuda":
        raise ValueError(f"compile: graphs needs a CUDA device; the model runs on {device}")
    base = read_checkpoint(args, family, dtype, device)
    usual_steps, most = args.defaults.num_inference_steps, base.schedule.max_steps
    if usual_steps > most:
        raise ValueError(
            f"defaults.num_inference_steps is {usual_steps}; the checkpoint's schedule has {most}"
        )
    skip, most = args.defaults.clip_skip, _skippable(base.text_encoders)
    if skip > most:
        raise ValueError(f"defaults.clip_skip is {skip}; of the text encoders {most} can be")
    words = add_embeddings(args.embeddings, base.text_encoders, base.tokenizers)
    unet = base.unet
    if args.tcd_lora is not None:
        if device.type == "cuda":
            unet.to(device)  # where the products take no time
        fuse(unet, fetch(args.tcd_lora))
    models: dict[str, nn.Module] = {"unet": unet}
    models |= zip(TEXT_ENCODERS, base.text_encoders, strict=False)
    motion = None
    if args.motion_adapter is not None:
        motion = load_motion(args.motion_adapter, unet, args.variant, dtype)
        models["motion_unet"] = motion.unet
    ip_adapters = load_ip_adapters(args.named_ip_adapters, unet)
    image_attention = None
    if ip_adapters:
        image_attention = ImageAttention(unet, cross_attentions(unet))
        if motion is not None:
            motion = motion.seeing(image_attention)
    controls = read_controls(args.controls, args.variant, unet, dtype)
    for model in (*models.values(), *controls.models):
        call_processors_directly(_settle(model, device))
    compiler = None if args.compile == "off" else Compiler(inductor)
    compiled: dict[str, list[CompiledBlock]] = {}
    if compiler is not None:
        compiled["unet"] = compiler.blocks(unet)
        for model in controls.models:
            compiler.blocks(model)
    vae = Vae(_settle(base.vae, device))
    preview_vae = vae
    if args.preview_vae is not None:
        preview_vae = Vae(_settle(read_preview_vae(args.preview_vae, base.vae, dtype), device))
    return Components(
        family=family,
        device=device,
        dtype=dtype,
        unet=unet,
        vae=vae,
        preview_vae=preview_vae,
        tokenizers=base.tokenizers,
        text_encoders=base.text_encoders,
        words=words,
        schedule=base.schedule,
        zero_empty_negative=base.zero_empty_negative,
        controls=controls,
        ip_adapters={name: adapter.to(device) for name, adapter in ip_adapters.items()},
        image_attention=image_attention,
        motion=motion,
        motion_schedule=base.schedule.changed(
            args.motion_schedule.beta_schedule, args.motion_schedule.timestep_spacing
        ),
        banks={name: Bank(model, dtype, compiled.get(name, ())) for name, model in models.items()},
        lora_reader=LoraReader(models, dtype, words=words, pin=device.type == "cuda"),
        compile=args.compile,
        compiler=compiler,
        warm_sizes=args.warm_sizes,
    )


def _skippable(text_encoders: Iterable[nn.Module]) -> int:
    """Layers that may be passed over: one is left."""
    return min(map(layers_of, text_encoders)) - 1


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


Model = TypeVar("Model", bound=nn.Module)


def _settle(model: Model, device: torch.device) -> Model:
    """On its device, ready to be called."""
    return model.to(device).eval().requires_grad_(False)
