"""What one image asks of the engine, fully resolved. No torch."""

from dataclasses import dataclass
from typing import NamedTuple

from deployments.diffusion.engine.batch import BatchKey

LATENT_SCALE = 8  # pixels per latent pixel, a side, in all three families


class PromptIds(NamedTuple):
    """A tokenised text.

    Attributes:
        ids: per text encoder, its token ids padded to the encoder's length (77).
        tokens: how many of them are text, begin and end marks not counted.
    """

    ids: tuple[tuple[int, ...], ...]
    tokens: int


@dataclass(frozen=True)
class RowSpec:
    """One image.

    Attributes:
        negative: ids of the negative prompt (the empty text if none was given); `None`
            where guidance is not in force.
        negative_given: sdxl takes zeros instead of the empty text where none was given.
        height, width: pixels.
        guidance_scale: above 1, as in diffusers, wherever `negative` is not `None`.
        loras: adapter keys and weights.
        partial_steps: after these many steps the estimate of x_0 is decoded.
    """

    prompt: PromptIds
    seed: int
    height: int
    width: int
    num_inference_steps: int
    eta: float = 0.3
    guidance_scale: float = 0.0
    negative: PromptIds | None = None
    negative_given: bool = False
    loras: tuple[tuple[str, float], ...] = ()
    partial_steps: tuple[int, ...] = ()

    @property
    def key(self) -> BatchKey:
        """What must be equal for rows to share a UNet call."""
        return BatchKey(self.height // LATENT_SCALE, self.width // LATENT_SCALE)

    @property
    def guided(self) -> bool:
        """Whether the row brings its unconditional twin."""
        return self.negative is not None


def partial_steps(num_inference_steps: int, partial_images: int) -> tuple[int, ...]:
    """After which real steps to show `partial_images` previews, evenly spread.

    Fewer than asked for if there are fewer steps before the last.
    """
    count = min(partial_images, num_inference_steps - 1)
    return tuple((i + 1) * num_inference_steps // (count + 1) for i in range(count))
