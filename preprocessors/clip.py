"""What CLIP's vision models read of pictures: their processor, and which shapes it takes."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil

from preprocessors.image_file import MAX_ASPECT_RATIO
from preprocessors.pixels import Pixels


def clip_processor(folder: Path, side: int) -> CLIPImageProcessorPil:
    """Of a checkpoint's preprocessor_config.json where it has one, else for a model that sees
    pictures of `side` x `side`."""
    if (folder / "preprocessor_config.json").exists():
        return CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return CLIPImageProcessorPil(size=side, crop_size=side)


def clip_pixels(processor: CLIPImageProcessorPil, images: Sequence[Pixels], done: str) -> Tensor:
    """What a model reads of images, (n, 3, side, side) float32: each scaled by its shorter side,
    of which the square in the middle.

    Args:
        images: (height, width, 3) uint8 each, of any sizes; may be read-only.
        done: what is to become of them, for errors, such as "encoded".

    Raises `ValueError` if one side of an image is more than `MAX_ASPECT_RATIO` times the other: the
    processor enlarges the shorter one to the model's size before it crops.
    """
    for image in images:
        if max(image.shape[:2]) > MAX_ASPECT_RATIO * min(image.shape[:2]):
            raise ValueError(
                f"an image of {image.shape[1]} x {image.shape[0]} pixels cannot be {done}; "
                f"one side may be at most {MAX_ASPECT_RATIO} times the other"
            )
    pixels: Tensor = processor(list(map(Image.fromarray, images)), return_tensors="pt").pixel_values
    return pixels
