"""Depth maps by a DPT model, the control images of depth ControlNets.

The steps are those of the TCD-LoRA guide's `get_depth_map`: the checkpoint's image processor,
the model under autocast, bicubic interpolation, min-max to 0..1, three channels, uint8.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import DPTForDepthEstimation, DPTImageProcessorPil

from preprocessors.pixels import Pixels
from preprocessors.placement import loaded, torch_device, torch_dtype

# The first fusion layer has no residual to add: published checkpoints leave this unit out.
_NEVER_RUN = "neck.fusion_stage.layers.0.residual_layer1."
# A range of this many times the depth is rounding of the interpolation, not depth.
_NOISE = 16 * torch.finfo(torch.float32).eps


class DepthEstimator:
    """A DPT checkpoint (`Intel/dpt-hybrid-midas`, `Intel/dpt-large`), ready to estimate.

    Args:
        folder: config.json, model.safetensors and preprocessor_config.json.
        device: a torch device, or "auto".
        dtype: "float32"; or "float16", "bfloat16": the model then runs under autocast, as
            the guide's does, on weights that stay in float32.

    Raises `OSError` if a file is missing, `ValueError` if weights or the dtype's name are.
    """

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        self._device = torch_device(device)
        self._dtype = torch_dtype(dtype)
        self._processor = DPTImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self._model = loaded(
            DPTForDepthEstimation, folder, self._device, torch.float32, unused=_NEVER_RUN
        )

    def estimate(self, images: Sequence[Pixels], sizes: Sequence[tuple[int, int]]) -> list[Pixels]:
        """The depth map of each image, in one batch: near is white, far is black.

        Args:
            images: (height, width, 3) uint8 each, of any sizes; may be read-only.
            sizes: (width, height) of each map, in pixels.

        Returns per image (height, width, 3) uint8, three equal channels that span 0-255; all
        zeros where the depth is the same everywhere.

        Raises `ValueError` if there are not as many sizes as images, `FloatingPointError` if
        the estimate of one left the finite range.
        """
        if len(images) != len(sizes):
            raise ValueError(f"there are {len(images)} images and {len(sizes)} sizes")
        if not images:
            return []
        with torch.inference_mode():
            depths = self._predict(images)
            return [_grey(depth, size) for depth, size in zip(depths, sizes, strict=True)]

    def _predict(self, images: Sequence[Pixels]) -> Tensor:
        pictures = [Image.fromarray(image) for image in images]
        pixels: Tensor = self._processor(images=pictures, return_tensors="pt").pixel_values
        with torch.autocast(
            self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32
        ):
            predicted: Tensor = self._model(pixels.to(self._device)).predicted_depth
        return predicted.float()


def _grey(depth: Tensor, size: tuple[int, int]) -> Pixels:
    width, height = size
    depth = interpolate(
        depth[None, None], size=(height, width), mode="bicubic", align_corners=False
    )[0, 0]
    low, high = depth.amin(), depth.amax()
    span = high - low
    if not torch.isfinite(span):
        raise FloatingPointError("the depth estimate left the finite range")
    if span <= _NOISE * torch.maximum(low.abs(), high.abs()):
        return np.zeros((height, width, 3), np.uint8)
    unit = ((depth - low) / span).cpu().numpy()
    grey = (unit * 255.0).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
