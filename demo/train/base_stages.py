"""Stages of the autoencoder, and of a base with its LoRAs and ControlNets."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL

from demo.lora import Format
from demo.train.card import Card
from demo.train.controls import Control, ControlTask, control_maps
from demo.train.diffusion import BaseTask
from demo.train.folders import (
    WEIGHTS,
    load_text_encoders,
    save_base,
    save_half,
    save_text_encoders,
)
from demo.train.lora import load_lora, save_lora
from demo.train.model import Base
from demo.train.reading import ReadingTask
from demo.train.stage import Stage
from demo.train.styles import FORMATS, StyleTask
from demo.train.tcd import TcdTask
from demo.train.text import Tokenizers
from demo.train.vae import CROP_SHARE, DecoderTask, VaeTask, l1, make_vae, whiten
from demo.train.workshop import Workshop
from demo.world.style import Style

HELD_BACK = 1000  # varied pictures that measure the autoencoder


def train_vae(stage: Stage, shop: Workshop) -> Card:
    """The autoencoder that all bases share."""
    pixels = shop.varied_pictures().pixels
    kept = min(HELD_BACK, len(pixels) // 4)
    torch.manual_seed(shop.seed)
    vae: AutoencoderKL = make_vae().to(shop.device)
    folder = shop.models / stage.output
    shop.begin(vae, folder / WEIGHTS)
    crop_steps = round(CROP_SHARE * stage.plan.steps)
    task = VaeTask(vae, pixels[:-kept], stage.plan.batch_size, crop_steps)
    history = shop.train(stage.name, task, stage.plan)
    vae.eval()
    whiten(vae, pixels[: 4 * kept])
    error = l1(vae.half().float(), pixels[-kept:])
    print(f"{stage.name}: L1 {error:.4f} on {kept} pictures it never saw", flush=True)
    save_half(vae, folder)
    shop.forget_latents()
    what = f"An AutoencoderKL of 8 pixels to a latent. L1 on unseen pictures: {error:.4f}."
    return Card(folder / "README.md", "Autoencoder", what, history)


def train_decoder(stage: Stage, shop: Workshop) -> Card:
    """sdxl's autoencoder: that of all bases, whose decoder learns a second size. The encoder, and
    so every latent, stays."""
    small, large = shop.varied_pictures().pixels, shop.large_varied_pixels()
    kept = min(HELD_BACK, len(small) // 4, len(large) // 4)
    torch.manual_seed(shop.seed)
    vae = shop.vae()
    folder = shop.models / stage.output
    shop.begin(vae, folder / WEIGHTS)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    task = DecoderTask(vae, small[:-kept], large[:-kept], stage.plan.batch_size)
    history = shop.train(stage.name, task, stage.plan)
    vae.eval()
    errors = [l1(vae.half().float(), pixels[-kept:]) for pixels in (small, large)]
    save_half(vae, folder)
    what = (
        "The autoencoder that all bases share, its decoder trained on at 128 x 128 too. "
        f"L1 on unseen pictures: {errors[0]:.4f} at 64 x 64, {errors[1]:.4f} at 128 x 128."
    )
    return Card(folder / "README.md", "Autoencoder of sdxl", what, history)


def text_stage(family: str) -> Callable[[Stage, Workshop], Card]:
    """Text encoders that read captions."""

    def run(stage: Stage, shop: Workshop) -> Card:
        captions = shop.captioned_pictures().captions
        torch.manual_seed(shop.seed)
        base = Base(family, scale=shop.scale).to(shop.device)
        task = ReadingTask(base, Tokenizers(family)(captions), captions, stage.plan.batch_size)
        history = shop.train(stage.name, task, stage.plan)
        folder = shop.models / family
        save_text_encoders(base, folder)
        what = f"Text encoders in the shape of {family} that read captions, and no UNet yet."
        title = f"Text encoders of {family}"
        return Card(folder / "README.md", title, what, history)

    return run


def base_stage(family: str) -> Callable[[Stage, Workshop], Card]:
    """The UNet of a base from scratch, and its text encoders further."""

    def run(stage: Stage, shop: Workshop) -> Card:
        data = shop.base_latents(family)
        torch.manual_seed(shop.seed)
        base = Base(family, scale=shop.scale)
        folder = shop.models / family
        load_text_encoders(base, folder)
        if family == "sdxl" and not (folder / "vae" / WEIGHTS).exists():
            raise FileNotFoundError(f"{folder / 'vae' / WEIGHTS} is missing")
        shop.begin(base.unet, folder / "unet" / WEIGHTS)
        base.to(shop.device)
        task = BaseTask(base, data, stage.plan.batch_size)
        history = shop.train(stage.name, task, stage.plan)
        if family == "sd21":
            shop.copy_vae(family, folder)
        save_base(base, folder)
        what = f"UNet and text encoders in the shape of {family}, trained together from scratch."
        title = f"Demo base {family}"
        return Card(folder / "README.md", title, what, history)

    return run


def tcd_stage(family: str) -> Callable[[Stage, Workshop], Card]:
    """The TCD-LoRA of a base."""

    def run(stage: Stage, shop: Workshop) -> Card:
        base = shop.base(family)
        torch.manual_seed(shop.seed)
        task = TcdTask(base, shop.base_latents(family), stage.plan.batch_size)
        folder = shop.models / stage.output
        file_format: Format = "kohya" if family == "sd15" else "peft"
        weights = folder / "pytorch_lora_weights.safetensors"
        if shop.from_finished:
            for unet in (task.student.unet, task.target.unet):
                load_lora(unet, family, file_format, weights)
        history = shop.train(stage.name, task, stage.plan)
        save_lora(task.student.unet, family, file_format, weights)
        what = f"The demo base {family} distilled by TCD (arXiv 2402.19159) into a LoRA."
        title = f"TCD-LoRA of {family}"
        return Card(folder / "README.md", title, what, history)

    return run


def style_stage(family: str, style: Style) -> Callable[[Stage, Workshop], Card]:
    """A style LoRA."""

    def run(stage: Stage, shop: Workshop) -> Card:
        base = shop.base(family)
        torch.manual_seed(shop.seed)
        task = StyleTask(base, shop.style_latents(style, family), stage.plan.batch_size)
        file = shop.models / stage.output
        if shop.from_finished:
            load_lora(base.unet, family, FORMATS[style], file)
        history = shop.train(stage.name, task, stage.plan)
        save_lora(base.unet, family, FORMATS[style], file)
        what = f"A style LoRA for the demo base {family}: {style}, as `demo/world/style.py` draws."
        card = file.with_name(f"{style}.md")
        return Card(card, f"Style {style}", what, history)

    return run


def control_stage(family: str, control: Control) -> Callable[[Stage, Workshop], Card]:
    """A ControlNet."""

    def run(stage: Stage, shop: Workshop) -> Card:
        base = shop.base(family)
        torch.manual_seed(shop.seed)
        data = shop.adapter_latents(
            family, lambda series, pictures: control_maps(control, series, pictures.pixels)
        )
        task = ControlTask(base, data, stage.plan.batch_size)
        folder = shop.models / stage.output
        shop.begin(task.controlnet, folder / WEIGHTS)
        history = shop.train(stage.name, task, stage.plan)
        save_half(task.controlnet, folder)
        what = f"A ControlNet for {control} maps of the demo base {family}."
        title = f"ControlNet {control}"
        return Card(folder / "README.md", title, what, history)

    return run
