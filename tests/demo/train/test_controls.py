"""A ControlNet at its beginning: it sees its map, and changes nothing yet."""

import torch
from diffusers import ControlNetModel

from demo.controlnet import EMBEDDING_WIDTHS
from demo.train.controls import open_eyes
from demo.train.model import Base


def fresh() -> ControlNetModel:
    torch.manual_seed(0)
    controlnet: ControlNetModel = ControlNetModel.from_unet(
        Base("sd15", scale=1).unet, conditioning_embedding_out_channels=EMBEDDING_WIDTHS
    )
    return controlnet


def contrast(controlnet: ControlNetModel) -> float:
    """How much the embeddings of an empty and of a full map differ, over their size."""
    maps = torch.zeros(2, 3, 64, 64)
    maps[1] = 1
    empty, full = controlnet.controlnet_cond_embedding(maps).detach()
    return float((full - empty).norm() / (full.norm() + empty.norm() + 1e-9))


def test_it_sees_its_map() -> None:
    controlnet = fresh()
    assert contrast(controlnet) == 0
    open_eyes(controlnet)
    assert contrast(controlnet) > 0.3


def test_it_changes_nothing_yet() -> None:
    controlnet = fresh()
    open_eyes(controlnet)
    down, mid = controlnet(
        torch.randn(1, 4, 8, 8),
        torch.tensor([500]),
        encoder_hidden_states=torch.randn(1, 77, 64),
        controlnet_cond=torch.rand(1, 3, 64, 64),
        return_dict=False,
    )
    assert all(not residual.any() for residual in (*down, mid))
