"""What was trained and what diffusers loads from its file are the same function."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.lora_pipeline import (
    StableDiffusionLoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
)
from torch import Tensor, nn

from demo.lora import TCD_LAYERS, Format
from demo.train.diffusion import Latents
from demo.train.ip_adapter import IpAdapterTask, save_ip_adapter
from demo.train.lora import add_lora, save_lora
from demo.train.model import Base, Conditioning, added
from demo.train.tcd import TcdTask
from demo.train.text import Tokenizers

CAPTION = "a big red ball on the left, in the snow"
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([999, 300])


def base(family: str) -> Base:
    torch.manual_seed(1)
    return Base(family, scale=1).eval().requires_grad_(False)


def conditioning(model: Base) -> Conditioning:
    return model.encode(Tokenizers(model.family)([CAPTION] * 2))


def shaken(unet: nn.Module) -> None:
    """Give the LoRA, which begins at nothing, some effect."""
    torch.manual_seed(2)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)


def of_both(unet: UNet2DConditionModel, told: Conditioning) -> Tensor:
    output: Tensor = unet(
        X, T, encoder_hidden_states=told.states, added_cond_kwargs=added(told, X)
    ).sample
    return output.detach()


@pytest.mark.parametrize(
    ("family", "file_format"),
    [
        ("sd15", "kohya"),
        ("sd15", "peft"),
        ("sd15", "diffusers"),
        ("sd21", "kohya"),
        ("sdxl", "peft"),
    ],
)
def test_a_lora_file_is_the_lora(tmp_path: Path, family: str, file_format: Format) -> None:
    model = base(family)
    plain = copy.deepcopy(model.unet)
    add_lora(model.unet, 4, TCD_LAYERS)
    shaken(model.unet)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_lora(model.unet, family, file_format, file)
    told = conditioning(model)
    expected, unchanged = of_both(model.unet, told), of_both(plain, told)
    mixin = StableDiffusionXLLoraLoaderMixin if family == "sdxl" else StableDiffusionLoraLoaderMixin
    loaded = mixin.lora_state_dict(tmp_path, unet_config=plain.config, return_alphas=True)
    state, alphas = loaded[0], loaded[1]
    mixin.load_lora_into_unet(state, network_alphas=alphas, unet=plain)
    assert (expected - unchanged).abs().max() > 0.01
    torch.testing.assert_close(of_both(plain, told), expected, atol=2e-3, rtol=2e-2)


def test_the_target_follows_the_student() -> None:
    model = base("sd15")
    data = Latents(X, Tokenizers("sd15")([CAPTION] * 2))
    task = TcdTask(model, data, 2, rank=2)
    shaken(task.student.unet)
    name = next(n for n, _ in task.student.unet.named_parameters() if "lora_B" in n)
    student = task.student.unet.get_parameter(name)
    target = task.target.unet.get_parameter(name)
    before = target.clone()
    task.after_step(1)
    torch.testing.assert_close(target, 0.95 * before + 0.05 * student)
    losses = task.losses(torch.Generator().manual_seed(0))
    losses["loss"].backward()
    assert student.grad is not None
    assert target.grad is None


def test_an_ip_adapter_file_is_the_adapter(tmp_path: Path) -> None:
    model = base("sd15")
    plain = copy.deepcopy(model)
    embeds = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    data = Latents(X, Tokenizers("sd15")([CAPTION] * 2), given=embeds)
    task = IpAdapterTask(model, data, embeds.shape[1], 2)
    torch.manual_seed(4)
    for attention in task.attentions.values():
        nn.init.normal_(attention.to_v_ip.weight, std=0.3)
        attention.tokens = task.projection(embeds)
    save_ip_adapter(task, tmp_path / "models" / "ip-adapter.safetensors")
    told = conditioning(plain)
    expected = of_both(model.unet, told)
    unchanged = of_both(plain.unet, told)
    pipe = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=plain.unet,
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.load_ip_adapter(
        tmp_path,
        subfolder="models",
        weight_name="ip-adapter.safetensors",
        image_encoder_folder=None,
        local_files_only=True,
    )
    pipe.set_ip_adapter_scale(1.0)
    again: Tensor = plain.unet(
        X,
        T,
        encoder_hidden_states=told.states,
        added_cond_kwargs={"image_embeds": [embeds[:, None]]},
    ).sample.detach()
    assert (expected - unchanged).abs().max() > 0.01
    torch.testing.assert_close(again, expected, atol=2e-3, rtol=2e-2)
