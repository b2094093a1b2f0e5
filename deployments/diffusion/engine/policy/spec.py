"""What one image asks of the engine, fully resolved. No torch."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple

from configs.collection import Held
from deployments.contracts.jobs import Embeds, Mask, Pixels, ToldSize, real_steps
from deployments.diffusion.engine.policy.batch import BatchKey

SHARED_WINDOWS = 8  # of texts whose rows share a call with those of any other such text
MAX_WINDOWS = 32  # of one text, each of as many tokens as its encoder reads
LATENT_SCALE = 8  # pixels per latent pixel, a side, in all three families


class PromptIds(NamedTuple):
    """A tokenised text.

    Attributes:
        ids: per text encoder, of each window its token ids, padded to the encoder's length (77).
        tokens: how many of them are text, begin and end marks not counted.
        weights: how strongly each of `ids` acts; `None`: all with 1.
    """

    ids: tuple[tuple[tuple[int, ...], ...], ...]
    tokens: int
    weights: tuple[tuple[tuple[float, ...], ...], ...] | None = None


@dataclass(frozen=True)
class LoraSource:
    """Where an adapter comes from, and which UNet it goes to: "unet" or "motion_unet". `held`:
    what was found of one that is not listed."""

    name: str
    source: str
    unet: str = "unet"
    held: Held | None = None

    def key(self, state: str) -> str:
        """The key of an adapter: another source under the same name is another adapter, and so
        is another file at the same local source, as its `state` tells."""
        digest = sha256(f"{self.unet} {self.source} {state}".encode()).hexdigest()[:12]
        return f"{self.name.replace('.', '_')}-{digest}"


@dataclass(frozen=True, eq=False)
class Source:
    """A picture to start from.

    Attributes:
        pixels: (height, width, 3) uint8.
        mask: (height, width) uint8, 255 where the picture is made anew; `None`: everywhere.
    """

    pixels: Pixels
    mask: Mask | None = None


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet in force for the steps from `start` to `end` (fractions of all steps).

    Attributes:
        type: name of the net in the model's configuration.
        maps: (height, width, 3) uint8 each: one, or of a video one a frame.
    """

    type: str
    maps: tuple[Pixels, ...]
    conditioning_scale: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def scale_at(self, step: int, steps: int) -> float:
        """Its scale in a step, counted from 0, as diffusers' `controlnet_keep` has it."""
        off = step / steps < self.start or (step + 1) / steps > self.end
        return 0.0 if off else self.conditioning_scale


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """What one of the model's IP-Adapters sees.

    Attributes:
        name: of the adapter.
        embeds: of each picture, (2, ...) float32: the picture's, and those of no picture.
        mask: (height, width) uint8, 255 where it acts; `None`: everywhere.
    """

    name: str
    embeds: tuple[Embeds, ...]
    scale: float = 0.5
    mask: Mask | None = None


@dataclass(frozen=True, eq=False)
class RowSpec:
    """One image.

    Attributes:
        negative: ids of the negative prompt (the empty text if none was given); `None`
            where guidance is not in force.
        negative_given: sdxl takes zeros instead of the empty text where none was given.
        height, width: pixels.
        guidance_scale: above 1, as in diffusers, wherever `negative` is not `None`.
        loras: adapter keys and weights.
        frames: of a video; `None`: it is an image.
        clip_skip: last layers of the text encoders that are passed over.
        original_size, target_size: (height, width) that sdxl is told; `None`: its own.
        strength: with `source`: the share of the steps that is taken, the last ones.
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
    source: Source | None = None
    strength: float = 1.0
    controls: tuple[Control, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()
    frames: int | None = None
    clip_skip: int = 0
    original_size: ToldSize | None = None
    target_size: ToldSize | None = None

    @cached_property
    def steps(self) -> int:
        """UNet steps that it takes."""
        return real_steps(self.num_inference_steps, self.strength)

    @cached_property
    def key(self) -> BatchKey:
        """What must be equal for rows to share a UNet call."""
        size = (self.height // LATENT_SCALE, self.width // LATENT_SCALE)
        texts = (self.prompt, self.negative or self.prompt)
        windows = max(len(ids) for text in texts for ids in text.ids)
        return BatchKey(*size, self.frames, windows > SHARED_WINDOWS)

    @cached_property
    def calls_a_step(self) -> int:
        """UNet calls that one of its steps takes: two of a video with guidance, whose rows without
        the prompt have a call of their own, so that others wait half as long for each."""
        return 2 if self.guided and self.frames is not None else 1

    @cached_property
    def unet_rows(self) -> int:
        """Rows that it takes in a UNet call: one a frame, or twice one if guidance is in force."""
        if self.frames is not None:
            return self.frames
        return 2 if self.guided else 1

    @cached_property
    def work(self) -> int:
        """Latent pixels of its UNet rows in all its calls."""
        return self.steps * self.calls_a_step * self.unet_rows * self.key.pixels

    @property
    def latent_size(self) -> tuple[int, ...]:
        """(h, w) of an image, (frames, h, w) of a video."""
        size = (self.height // LATENT_SCALE, self.width // LATENT_SCALE)
        return size if self.frames is None else (self.frames, *size)

    @property
    def size_ids(self) -> tuple[int, ...]:
        """sdxl's six numbers: original size, crop corner, target size."""
        own = (self.height, self.width)
        return (*(self.original_size or own), 0, 0, *(self.target_size or own))

    @property
    def encode_pixels(self) -> int:
        """Latent pixels of the start picture, which the VAE encodes once for all images of its job.
        (A 9-channel UNet has it encode what the mask leaves, and below strength 1 both.)"""
        return 0 if self.source is None else self.key.pixels

    @property
    def guided(self) -> bool:
        """Whether the row brings its unconditional twin."""
        return self.negative is not None


def partial_steps(steps: int, partial_images: int) -> tuple[int, ...]:
    """After which real steps to show `partial_images` previews, evenly spread.

    Fewer than asked for if there are fewer steps before the last.
    """
    count = min(partial_images, steps - 1)
    return tuple((i + 1) * steps // (count + 1) for i in range(count))
