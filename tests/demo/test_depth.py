"""The depth estimator loads as Intel/dpt-hybrid-midas does, and sees the picture."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import DPTForDepthEstimation, DPTImageProcessorPil

from demo.depth import IMAGE_SIZE
from tests.demo.sampling import picture


@pytest.fixture(scope="module")
def estimator(models: Path) -> DPTForDepthEstimation:
    return DPTForDepthEstimation.from_pretrained(models / "dpt-hybrid", local_files_only=True)


@pytest.fixture(scope="module")
def processor(models: Path) -> DPTImageProcessorPil:
    return DPTImageProcessorPil.from_pretrained(models / "dpt-hybrid", local_files_only=True)


def depth_maps(
    estimator: DPTForDepthEstimation, processor: DPTImageProcessorPil, images: list[Image.Image]
) -> torch.Tensor:
    """Of shape (images, side, side)."""
    with torch.no_grad():
        output = estimator(processor(images, return_tensors="pt").pixel_values)
    maps = output.predicted_depth
    assert isinstance(maps, torch.Tensor)
    return maps


def test_architecture_is_the_hybrid(estimator: DPTForDepthEstimation) -> None:
    config = estimator.config
    assert config.is_hybrid
    assert config.backbone_config.model_type == "bit"
    assert config.backbone_config.layer_type == "bottleneck"
    assert config.readout_type == "project"
    assert estimator.dtype == torch.float32
    assert not estimator.training


def test_depth_follows_the_picture(
    estimator: DPTForDepthEstimation, processor: DPTImageProcessorPil
) -> None:
    maps = depth_maps(estimator, processor, [picture(number) for number in range(3)])
    assert maps.shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    assert maps.min() > 0
    assert (maps.std(dim=(1, 2)) > 0.5).all()
    likeness = torch.corrcoef(maps.flatten(1)) - torch.eye(3)
    assert likeness.abs().max() < 0.5


def test_any_shape_of_picture_is_squeezed_to_the_square(
    estimator: DPTForDepthEstimation, processor: DPTImageProcessorPil
) -> None:
    wide = picture(2).resize((300, 100))
    assert depth_maps(estimator, processor, [wide]).shape == (1, IMAGE_SIZE, IMAGE_SIZE)
