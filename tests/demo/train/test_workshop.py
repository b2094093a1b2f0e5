"""What a training run makes of its stage's plan."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from demo.train import workshop
from demo.train.data import LARGE
from demo.train.loop import Settings
from demo.train.workshop import Plan, Workshop
from demo.world.style import STYLES, draw_in_style


@pytest.mark.parametrize(
    ("able", "computes"),
    [({"avx512_f": True, "amx_bf16": True}, True), ({"bf16": True}, True), ({"avx2": True}, False)],
)
def test_bfloat16_is_for_processors_that_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, able: dict[str, bool], computes: bool
) -> None:
    train = Mock(return_value=[])
    monkeypatch.setattr(workshop, "train", train)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    shop = Workshop(tmp_path, tmp_path, torch.device("cpu"))
    shop.train("a stage", Mock(), Plan(8, 2, 1e-3, 1, bfloat16=True))
    settings: Settings = train.call_args.args[1]
    assert settings.bfloat16 is computes


def test_the_decoder_of_two_sizes_sees_larger_pictures_in_every_style(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, tmp_path, torch.device("cpu"), large=12)
    plain = shop.large_pictures().pixels
    seen = shop.large_varied_pixels()
    assert np.array_equal(seen[-12:], plain), "what is held back is plain, at the end"
    styled = seen[:-12].reshape(len(STYLES), -1, *plain.shape[1:])
    scenes = [LARGE.scene_and_look(number) for number in range(styled.shape[1])]
    for style, pictures in zip(STYLES, styled, strict=True):
        drawn = [draw_in_style(scene, look, style, side=128) for scene, look, _ in scenes]
        assert np.array_equal(pictures, np.stack(drawn))
