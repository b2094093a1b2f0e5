"""Depth maps, held to the TCD-LoRA guide's own `get_depth_map`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DPTForDepthEstimation, DPTImageProcessorPil

from preprocessors.depth import DepthEstimator, _grey
from preprocessors.pixels import Pixels

SIZES = [(64, 64), (128, 96), (40, 72), (200, 56)]


class Guide:
    """The guide's code. Mended: `DPTFeatureExtractor` is gone, `torch0` is a typo, the size and
    the device are arguments, and the depth leaves autocast's type before numpy sees it.
    """

    def __init__(self, folder: Path) -> None:
        self.depth_estimator = DPTForDepthEstimation.from_pretrained(folder).eval()
        self.feature_extractor = DPTImageProcessorPil.from_pretrained(folder)

    def get_depth_map(
        self, image: Pixels, size: tuple[int, int], autocast: torch.dtype | None = None
    ) -> Pixels:
        pixels = self.feature_extractor(
            images=Image.fromarray(image), return_tensors="pt"
        ).pixel_values
        with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
            depth_map = self.depth_estimator(pixels).predicted_depth.float()
        depth_map = torch.nn.functional.interpolate(
            depth_map.unsqueeze(1), size=size[::-1], mode="bicubic", align_corners=False
        )
        depth_min = torch.amin(depth_map, dim=[1, 2, 3], keepdim=True)
        depth_max = torch.amax(depth_map, dim=[1, 2, 3], keepdim=True)
        depth_map = (depth_map - depth_min) / (depth_max - depth_min)
        stacked = torch.cat([depth_map] * 3, dim=1)
        array = stacked.permute(0, 2, 3, 1).cpu().numpy()[0]
        return np.array(Image.fromarray((array * 255.0).clip(0, 255).astype(np.uint8)))


@pytest.fixture(scope="module")
def guide(dpt_folder: Path) -> Guide:
    return Guide(dpt_folder)


@pytest.fixture(scope="module")
def estimator(dpt_folder: Path) -> DepthEstimator:
    return DepthEstimator(dpt_folder, "cpu", "float32")


def levels_apart(a: Pixels, b: Pixels) -> int:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.uint8
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_each_map_is_the_guides(
    estimator: DepthEstimator, guide: Guide, pictures: list[Pixels]
) -> None:
    for picture, size in zip(pictures, SIZES, strict=True):
        (depth,) = estimator.estimate([picture], [size])
        assert levels_apart(depth, guide.get_depth_map(picture, size)) == 0
        assert depth.shape == (size[1], size[0], 3)
        assert (depth.min(), depth.max()) == (0, 255)
        assert len(np.unique(depth)) > 50  # the stand-in sees something
        assert (depth[..., :1] == depth).all()


def test_maps_differ_with_the_picture(estimator: DepthEstimator, pictures: list[Pixels]) -> None:
    maps = estimator.estimate(pictures, [(64, 64)] * 4)
    for i in range(4):
        for j in range(i):
            assert levels_apart(maps[i], maps[j]) > 10


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_a_batch_equals_one_by_one(
    estimator: DepthEstimator, pictures: list[Pixels], order: tuple[int, ...]
) -> None:
    images, sizes = [pictures[i] for i in order], [SIZES[i] for i in order]
    for i, depth in enumerate(estimator.estimate(images, sizes)):
        (alone,) = estimator.estimate(images[i : i + 1], sizes[i : i + 1])
        assert levels_apart(depth, alone) <= 1


def test_half_precision_is_autocast_like_the_guides(
    dpt_folder: Path, guide: Guide, estimator: DepthEstimator, pictures: list[Pixels]
) -> None:
    half = DepthEstimator(dpt_folder, "cpu", "bfloat16")
    (depth,) = half.estimate(pictures[:1], [(96, 72)])
    assert levels_apart(depth, guide.get_depth_map(pictures[0], (96, 72), torch.bfloat16)) == 0
    (full,) = estimator.estimate(pictures[:1], [(96, 72)])
    assert 0 < levels_apart(depth, full) < 64


def test_no_images_give_no_maps(estimator: DepthEstimator) -> None:
    assert estimator.estimate([], []) == []


def test_every_image_needs_a_size(estimator: DepthEstimator, pictures: list[Pixels]) -> None:
    with pytest.raises(ValueError, match="there are 4 images and 3 sizes"):
        estimator.estimate(pictures, SIZES[:3])


@pytest.mark.parametrize("value", [0.0, 0.1, 3.7, 1234.5])
def test_a_flat_map_is_black(value: float) -> None:
    # Interpolation rounds: without care its noise would be stretched to 0..255.
    grey = _grey(torch.full((24, 24), value), (100, 60))
    assert grey.shape == (60, 100, 3)
    assert not grey.any()


def test_a_model_that_sees_nothing_gives_a_black_map(
    dpt_folder: Path, pictures: list[Pixels], tmp_path: Path
) -> None:
    model = DPTForDepthEstimation.from_pretrained(dpt_folder)
    with torch.no_grad():
        model.head.head[4].weight.zero_()
    model.save_pretrained(tmp_path)
    DPTImageProcessorPil.from_pretrained(dpt_folder).save_pretrained(tmp_path)
    (depth,) = DepthEstimator(tmp_path, "cpu", "float32").estimate(pictures[:1], [(48, 32)])
    assert depth.shape == (32, 48, 3)
    assert not depth.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_out_of_range_are_an_error(value: float) -> None:
    depth = torch.ones(8, 8)
    depth[3, 3] = value
    with pytest.raises(FloatingPointError, match="finite"):
        _grey(depth, (16, 16))


def test_weights_that_the_model_never_runs_may_be_missing(
    dpt_folder: Path, pictures: list[Pixels], tmp_path: Path, estimator: DepthEstimator
) -> None:
    _copy_without(dpt_folder, tmp_path, "neck.fusion_stage.layers.0.residual_layer1.")
    (depth,) = DepthEstimator(tmp_path, "cpu", "float32").estimate(pictures[:1], [(64, 64)])
    assert levels_apart(depth, estimator.estimate(pictures[:1], [(64, 64)])[0]) == 0


def test_other_missing_weights_are_refused(dpt_folder: Path, tmp_path: Path) -> None:
    _copy_without(dpt_folder, tmp_path, "neck.convs.")
    with pytest.raises(ValueError, match=r"lacks the weights neck.convs.0.weight.* and 1 more"):
        DepthEstimator(tmp_path, "cpu", "float32")


def test_an_unknown_dtype_is_refused(dpt_folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16"):
        DepthEstimator(dpt_folder, "cpu", "int8")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="preprocessor_config"):
        DepthEstimator(tmp_path, "cpu", "float32")


def _copy_without(source: Path, target: Path, prefix: str) -> None:
    from safetensors.torch import load_file, save_file

    for file in source.glob("*.json"):
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    assert len(kept) < len(tensors)
    save_file(kept, target / "model.safetensors", {"format": "pt"})
