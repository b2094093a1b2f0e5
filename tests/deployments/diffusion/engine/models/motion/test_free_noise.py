"""FreeNoise: windows by plain arithmetic, noise by diffusers' own words."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin
from torch import Tensor

from deployments.diffusion.engine.models.motion.free_noise import FreeNoise, WindowedBlock

CHANNELS = 16


def block_of(longest: int) -> BasicTransformerBlock:
    torch.manual_seed(0)
    block = BasicTransformerBlock(
        CHANNELS,
        2,
        CHANNELS // 2,
        double_self_attention=True,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=longest,
    )
    return block.eval().requires_grad_(False)


def windowed(block: BasicTransformerBlock, longest: int) -> WindowedBlock:
    block.__class__ = WindowedBlock
    assert isinstance(block, WindowedBlock)
    block.free_noise = FreeNoise(longest)
    return block


def by_hand(block: BasicTransformerBlock, video: Tensor, starts: list[int], length: int) -> Tensor:
    """Frame by frame, what each window that holds it says, by how near it is to its middle."""
    block, video = block.double(), video.double()
    said = []
    for start in starts:
        x = video[:, start : start + length]
        x = x + block.attn1(block.norm1(x) + block.pos_embed.pe[:, :length])
        said.append(x + block.attn2(block.norm2(x) + block.pos_embed.pe[:, :length]))
    frames = []
    for frame in range(video.shape[1]):
        heard = [(frame - s, one) for s, one in zip(starts, said, strict=True)]
        heard = [(place, one) for place, one in heard if 0 <= place < length]
        weights = [min(place + 1, length - place) for place, _ in heard]
        total = sum(w * one[:, place] for w, (place, one) in zip(weights, heard, strict=True))
        frames.append(total / sum(weights))
    x = torch.stack(frames, dim=1)
    fed: Tensor = block.ff(block.norm3(x))
    return x + fed


@pytest.mark.parametrize(
    ("longest", "frames", "starts"),
    [
        (24, 28, [0, 4, 8, 12]),
        (24, 31, [0, 4, 8, 12, 15]),
        (32, 33, [0, 4, 8, 12, 16, 17]),
        (16, 17, [0, 1]),
        (9, 20, [0, 4, 8, 11]),
        (2, 5, [0, 2, 3]),
    ],
)
def test_windows(longest: int, frames: int, starts: list[int]) -> None:
    video = torch.randn(3, frames, CHANNELS, generator=torch.manual_seed(1))
    block = windowed(block_of(longest), longest)
    ours = block(video)
    assert torch.equal(block(video), ours)
    theirs = by_hand(block_of(longest), video, starts, min(16, longest))
    assert torch.allclose(ours.double(), theirs, atol=1e-5)


def test_without_need_there_are_none() -> None:
    video = torch.randn(3, 24, CHANNELS, generator=torch.manual_seed(1))
    plain, block = block_of(24), windowed(block_of(24), 24)
    block(torch.cat([video, video], dim=1))
    assert torch.equal(block(video), plain(video))


class Theirs(AnimateDiffFreeNoiseMixin):
    """diffusers' noise of long videos."""

    vae_scale_factor = 8
    _free_noise_context_length = 16
    _free_noise_context_stride = 4
    _free_noise_noise_type = "shuffle_context"


@pytest.mark.parametrize("frames", [25, 27, 28, 33])
def test_noise(frames: int) -> None:
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(1, 4, frames, 8, 8, generator=generator)[0]
    FreeNoise(24).shuffle(noise, generator)
    theirs = Theirs()._prepare_latents_free_noise(
        1, 4, frames, 64, 64, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(7)
    )[0]
    assert torch.equal(noise, theirs)


def test_noise_within_the_window_is_any() -> None:
    noise = torch.randn(4, 24, 8, 8)
    kept = noise.clone()
    FreeNoise(24).shuffle(noise, torch.Generator())
    assert torch.equal(noise, kept)
