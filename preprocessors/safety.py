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
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil
from transformers.utils.logging import disable_progress_bar

from preprocessors.image_file import MAX_ASPECT_RATIO
from preprocessors.pixels import Pixels
from preprocessors.placement import refuse_missing, torch_device, torch_dtype


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
        disable_progress_bar()
        self._device = torch_device(device)
        self._dtype = torch_dtype(dtype)
        model, info = StableDiffusionSafetyChecker.from_pretrained(
            folder,
            dtype=self._dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        refuse_missing(info["missing_keys"], folder)
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._concepts = _thresholds(model.concept_embeds_weights)
        self._special = _thresholds(model.special_care_embeds_weights)
        if (folder / "preprocessor_config.json").exists():
            self._processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        else:
            side = int(model.config.vision_config.image_size)
            self._processor = CLIPImageProcessorPil(size=side, crop_size=side)

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
        for image in images:
            if max(image.shape[:2]) > MAX_ASPECT_RATIO * min(image.shape[:2]):
                raise ValueError(
                    f"an image of {image.shape[1]} x {image.shape[0]} pixels cannot be checked; "
                    f"one side may be at most {MAX_ASPECT_RATIO} times the other"
                )
        pictures = [Image.fromarray(image) for image in images]
        pixels: Tensor = self._processor(pictures, return_tensors="pt").pixel_values
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
