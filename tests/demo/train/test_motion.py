"""A motion LoRA learns beside the weight that its videos show; noisy timesteps count most."""

from pathlib import Path

import pytest
import torch
from torch import nn

from demo.train.diffusion import noised
from demo.train.lora import ADAPTER, add_lora, lora_matrices
from demo.train.model import Base
from demo.train.motion import (
    FRAMES,
    LEAN,
    MotionTask,
    VideoLatents,
    load_motion_lora,
    motion_unet,
    save_motion_lora,
)
from demo.train.noise import STEPS, Schedule
from demo.train.text import Tokenizers


def loss_of(weight: float, task: MotionTask) -> float:
    ((_, videos),) = task.videos
    task.videos = [(weight, videos)]
    return task.losses(torch.Generator().manual_seed(0))["loss"].item()


def test_videos_are_learned_beside_their_weight() -> None:
    torch.manual_seed(0)
    base = Base("sd15", scale=1)
    unet = motion_unet(base)
    for name, parameter in unet.named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            nn.init.normal_(parameter, std=0.1)  # new modules change nothing
    data = VideoLatents(torch.randn(3, FRAMES, 4, 8, 8), Tokenizers("sd15")(["a red ball"] * 3))
    task = MotionTask(base, unet, {1.0: data}, batch_size=2, rank=4)
    for _, up in lora_matrices(unet).values():
        nn.init.normal_(up)
    whole, half = loss_of(1.0, task), loss_of(0.5, task)
    assert whole != pytest.approx(half, rel=1e-3)
    with torch.no_grad():
        for _, up in lora_matrices(unet).values():
            up /= 2
    assert loss_of(1.0, task) == pytest.approx(half, rel=1e-5)
    assert all(up.requires_grad for _, up in lora_matrices(unet).values())
    assert ADAPTER in unet.active_adapters()


def test_a_lora_goes_on_where_its_file_ends(tmp_path: Path) -> None:
    first, second = (motion_unet(Base("sd15", scale=1)) for _ in range(2))
    for unet in (first, second):
        add_lora(unet, 4, ("attn1.to_q", "attn2.to_out.0"))
    for down, up in lora_matrices(first).values():
        nn.init.normal_(down)
        nn.init.normal_(up)
    save_motion_lora(first, tmp_path / "zoom.safetensors")
    load_motion_lora(second, tmp_path / "zoom.safetensors")
    loaded = lora_matrices(second)
    for layer, pair in lora_matrices(first).items():
        for wanted, found in zip(pair, loaded[layer], strict=True):
            assert torch.equal(found, wanted.half().float())
    other = motion_unet(Base("sd15", scale=1))
    add_lora(other, 8, ("attn1.to_q", "attn2.to_out.0"))
    with pytest.raises(ValueError, match="another LoRA"):
        load_motion_lora(other, tmp_path / "zoom.safetensors")


def test_half_of_the_timesteps_are_among_the_noisiest() -> None:
    x0, schedule = torch.zeros(4000, 1, 1, 1), Schedule(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    even = noised(x0, schedule, generator).t.float()
    leaning = noised(x0, schedule, generator, LEAN).t.float()
    assert even.median() == pytest.approx(0.5 * STEPS, abs=0.01 * STEPS)
    assert leaning.median() == pytest.approx(0.5 ** (1 / LEAN) * STEPS, abs=0.01 * STEPS)
    assert 0 <= leaning.min() < 0.1 * STEPS
    assert leaning.max() == STEPS - 1
