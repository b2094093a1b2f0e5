"""Images as IP-Adapters see them: embeddings of a CLIP vision model with projection.

The arithmetic is that of `encode_image` in diffusers' Stable Diffusion pipelines.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from preprocessors.clip import clip_pixels, clip_processor
from preprocessors.pixels import Pixels
from preprocessors.placement import loaded, torch_device, torch_dtype

Embedding = NDArray[np.float32]  # (projection,), or with `hidden` (tokens, width)


class ImageEncoder:
    """A CLIP vision checkpoint (`h94/IP-Adapter`'s `models/image_encoder`), ready to encode.

    Args:
        folder: config.json and model.safetensors; preprocessor_config.json where it has one,
            else the processor is made from the model's image size, as
            `load_ip_adapter` of diffusers does.
        device: a torch device, or "auto".
        dtype: of weights and activations: "float32", "float16" or "bfloat16".

    Raises `OSError` if a file is missing, `ValueError` if weights or the dtype's name are.
    """

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        self._device = torch_device(device)
        self._dtype = torch_dtype(dtype)
        self._model = loaded(CLIPVisionModelWithProjection, folder, self._device, self._dtype)
        self._processor = clip_processor(folder, int(self._model.config.image_size))

    def encode(self, images: Sequence[Pixels], *, hidden: bool) -> list[Embedding]:
        """The embedding of each image, in one batch.

        Args:
            images: (height, width, 3) uint8 each, of any sizes; may be read-only.
            hidden: what `plus` adapters read: the last but one hidden states, (tokens, width).
                Otherwise the projected image embedding, (projection,).

        Returns float32 arrays, in order.

        Raises `ValueError` if one side of an image is more than `MAX_ASPECT_RATIO` times the
        other: the processor enlarges the shorter one to the model's size before it crops.
        """
        if not images:
            return []
        pixels = clip_pixels(self._processor, images, "encoded")
        return list(self._forward(pixels, hidden))

    def unconditional(self, *, hidden: bool) -> Embedding:
        """What guidance steers away from: zeros, or with `hidden` the encoding of zero pixels.

        Read-only; shaped like an element of `encode`'s result.
        """
        return self._blank_hidden if hidden else self._blank

    @cached_property
    def _blank(self) -> Embedding:
        blank = np.zeros(int(self._model.config.projection_dim), np.float32)
        blank.flags.writeable = False
        return blank

    @cached_property
    def _blank_hidden(self) -> Embedding:
        crop = self._processor.crop_size
        pixels = torch.zeros(1, 3, int(crop["height"]), int(crop["width"]))
        blank: Embedding = self._forward(pixels, True)[0]
        blank.flags.writeable = False
        return blank

    def _forward(self, pixels: Tensor, hidden: bool) -> Embedding:
        with torch.inference_mode():
            pixels = pixels.to(self._device, self._dtype)
            output = self._model(pixels, output_hidden_states=hidden)
            states: Tensor = output.hidden_states[-2] if hidden else output.image_embeds
            array: Embedding = states.float().cpu().numpy()
            return array
