"""Pictures of two sizes in training: each is drawn alike, told to sdxl, and has its share."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from demo.train.controls import Control, control_maps
from demo.train.data import LARGE, PLAIN
from demo.train.diffusion import Latents, Sizes
from demo.train.inpainting import mask_of
from demo.train.model import Conditioning, added
from demo.world.caption import caption
from demo.world.look import draw_look
from demo.world.renderer import draw
from demo.world.scene import Scene, Solid
from demo.world.style import STYLES, Style, draw_in_style

SCENE = Scene((Solid("cone", "green", "big", "left"), Solid("ball", "red", "big", "right")), "sand")


def latents(side: int, *, enlarged: int = 1) -> Latents:
    return Latents(torch.randn(6, 4, side, side), torch.zeros(6, 1, 77).long(), enlarged)


def test_batches_are_of_one_size_each_and_share_the_time() -> None:
    data = Sizes([latents(8), latents(16), latents(16, enlarged=2)], (0.5, 0.4, 0.1))
    generator = torch.Generator().manual_seed(0)
    drawn = [data.batch(64, generator, torch.device("cpu")) for _ in range(400)]
    kinds = [(*batch.latents.shape, batch.enlarged) for batch in drawn]
    assert kinds.count((64, 4, 8, 8, 1)) / 400 == pytest.approx(0.5, abs=0.08)
    assert kinds.count((32, 4, 16, 16, 1)) / 400 == pytest.approx(0.4, abs=0.08)
    assert kinds.count((32, 4, 16, 16, 2)) / 400 == pytest.approx(0.1, abs=0.05)


def test_what_is_given_is_that_of_the_picture() -> None:
    own = torch.arange(6).float()
    data = Latents(own[:, None, None, None].expand(6, 4, 8, 8), torch.zeros(6, 1, 77), given=own)
    batch = data.batch(64, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert torch.equal(batch.latents[:, 0, 0, 0], batch.given)


@pytest.mark.parametrize(("enlarged", "original"), [(1, 128), (2, 64)])
def test_sdxl_is_told_the_size_and_what_it_was(enlarged: int, original: int) -> None:
    told = Conditioning(torch.zeros(3, 77, 8), torch.zeros(3, 8), enlarged)
    kwargs = added(told, torch.zeros(3, 4, 16, 16))
    assert kwargs is not None
    assert kwargs["time_ids"].tolist() == [[original, original, 0, 0, 128, 128]] * 3


def test_a_series_draws_its_size_and_its_captions(tmp_path: Path) -> None:
    for series, side in ((PLAIN, 64), (LARGE, 128)):
        drawn = series.pictures(tmp_path, 3)
        assert drawn.pixels.shape == (3, side, side, 3)
        scene, look, words = series.scene_and_look(2)
        assert drawn.captions[2] == caption(scene, words)
        assert np.array_equal(drawn.pixels[2], draw(scene, look, side=side).pixels)


@pytest.mark.parametrize("control", ["canny", "depth"])
def test_maps_of_larger_pictures_show_the_same(control: Control, tmp_path: Path) -> None:
    small = replace(LARGE, name="small", side=64)
    maps = [
        control_maps(control, series, series.pictures(tmp_path, 4).pixels).float()[:, None]
        for series in (small, LARGE)
    ]
    assert maps[1].shape == (4, 1, 128, 128)
    if control == "depth":
        assert (functional.avg_pool2d(maps[1], 2) - maps[0]).abs().mean() < 2
    else:
        near = functional.max_pool2d(maps[1], 6, stride=2, padding=2)
        assert (near[maps[0] > 0] > 0).float().mean() > 0.8
        near = functional.interpolate(functional.max_pool2d(maps[0], 3, 1, 1), scale_factor=2)
        assert (near[maps[1] > 0] > 0).float().mean() > 0.8


@pytest.mark.parametrize("style", STYLES)
def test_a_style_looks_alike_at_both_sizes(style: Style) -> None:
    look = draw_look(SCENE, np.random.default_rng(3))
    small = draw_in_style(SCENE, look, style)
    large = draw_in_style(SCENE, look, style, side=128)
    assert large.shape == (128, 128, 3)
    shrunk = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX))
    assert np.abs(shrunk.astype(int) - small).mean() < 2


def test_holes_are_as_large_at_both_sizes() -> None:
    for side in (8, 16):
        shares = [mask_of(number, side).mean() for number in range(300)]
        assert min(shares) >= (3 / 8) ** 2
        assert np.mean(shares) == pytest.approx(0.52, abs=0.05)
