"""How near pictures are to what a safety checker looks for.

The arithmetic is that of `StableDiffusionSafetyChecker` in diffusers, up to its thresholds; what is
made of the distances from these is for others to say.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import (
    StableDiffusionSafetyChecker,
    cosine_distance,
)
from numpy.typing import NDArray
from torch import Tensor

from preprocessors.clip import clip_pixels, clip_processor
from preprocessors.pixels import Pixels
from preprocessors.placement import loaded, torch_device, torch_dtype


class Margins(NamedTuple):
    """Cosine similarities of one picture, each less the threshold of its checkpoint; float32.

    Attributes:
        concepts: (17,) what is not to be shown.
        special: (3,) what calls for special care with those.
    """

    concepts: NDArray[np.float32]
    special: NDArray[np.float32]


class SafetyChecker:
    """A safety checkpoint (`CompVis/stable-diffusion-safety-checker`), ready to look at pictures.

    Args:
        folder: config.json and model.safetensors; preprocessor_config.json where it has one, else
            the processor is made from the model's image size.
        device: a torch device, or "auto".
        dtype: of weights and activations: "float32", "float16" or "bfloat16".

    Raises `OSError` if a file is missing, `ValueError` if weights or the dtype's name are.
    """

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        self._device = torch_device(device)
        self._dtype = torch_dtype(dtype)
        self._model = loaded(StableDiffusionSafetyChecker, folder, self._device, self._dtype)
        self._concepts = _thresholds(self._model.concept_embeds_weights)
        self._special = _thresholds(self._model.special_care_embeds_weights)
        self._processor = clip_processor(folder, int(self._model.config.vision_config.image_size))

    def margins(self, images: Sequence[Pixels]) -> list[Margins]:
        """Of each image, in one batch. The processor scales the shorter side to the model's size
        and looks at the square in the middle.

        Args:
            images: (height, width, 3) uint8 each, of any sizes; may be read-only.

        Raises `ValueError` if one side of an image is more than `MAX_ASPECT_RATIO` times the other,
        `FloatingPointError` if the numbers of one left the finite range, of which nothing can be
        said.
        """
        if not images:
            return []
        pixels = clip_pixels(self._processor, images, "checked")
        with torch.inference_mode():
            pooled = self._model.vision_model(pixels.to(self._device, self._dtype))[1]
            seen = self._model.visual_projection(pooled)
            concepts = _numbers(cosine_distance(seen, self._model.concept_embeds))
            special = _numbers(cosine_distance(seen, self._model.special_care_embeds))
        return list(map(Margins, concepts - self._concepts, special - self._special))


def _numbers(cosines: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = cosines.cpu().float().numpy()
    if not np.isfinite(array).all():
        raise FloatingPointError("what the safety checker saw left the finite range")
    return array


def _thresholds(weights: Tensor) -> NDArray[np.float32]:
    return _numbers(weights.detach())
