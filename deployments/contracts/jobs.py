"""What crosses handles: requests and results of other applications, jobs and their events.

Importable without torch and without Ray. `ImageRequest` is what a caller says, with gaps;
`ImageJob` is the same request with every gap filled in by the model's defaults.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass as validated

from deployments.contracts.stages import Stages

if TYPE_CHECKING:  # a recipe holds adapters and controls, which are defined here
    from deployments.contracts.recipe import Recipe

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB
Mask = NDArray[np.uint8]  # (height, width); 255 is made anew, 0 is kept
Embeds = NDArray[np.float32]  # (2, ...): of a picture, and of no picture
Asset = Pixels | Mask | Embeds
Latents = NDArray[np.float32]  # (channels, height / 8, width / 8)

MAX_SEED = 2**63 - 1
MAX_LORA_WEIGHT = 10.0
MAX_STEPS = 50
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0  # of a caller
BACKGROUND = -10  # the lowest priority
BACKGROUND_SHARE = 0.1  # of a caller's weight, that its requests of this priority have together
MAX_SEEN = 8  # pictures that one IP-Adapter sees together
MAX_IP_ADAPTERS = 4  # objects of one `ip_adapter`: adapters, regions
# What no configuration can raise: so much is read of a request before anything is known of it.
MAX_TEXT = 100_000  # characters of a prompt
MAX_NAME = 100  # characters of the name of a model, an adapter, a control, a size
MAX_ENTRIES = 64  # of one list
MAX_FRAMES = 256  # of a video
MAX_TOLD = 16_384  # pixels a side that an sdxl model is told of


def readable_text(text: object) -> object:
    """`text` as it came; `ValueError` for what no tokenizer reads and no answer could repeat."""
    if isinstance(text, str) and len(text) <= MAX_TEXT:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("is no valid Unicode: it holds half of a surrogate pair") from error
    return text


def no_truth(number: object) -> object:
    """`number` as it came; `ValueError` for what Python takes for 0 or 1, as no caller means it."""
    if isinstance(number, bool):
        raise ValueError("must be a number, not true or false")
    return number


Int = Annotated[int, BeforeValidator(no_truth)]
Float = Annotated[float, BeforeValidator(no_truth)]
Text = Annotated[str, Field(max_length=MAX_TEXT), BeforeValidator(readable_text)]
Name = Annotated[str, Field(max_length=MAX_NAME), BeforeValidator(readable_text)]
Steps = Annotated[Int, Field(ge=1, le=MAX_STEPS, description="denoising steps, 1-50")]
Eta = Annotated[Float, Field(ge=0, le=1, description="stochasticity of TCD, the paper's gamma")]
Guidance = Annotated[
    Float, Field(ge=0, le=30, description="classifier-free guidance; above 1 it is in force")
]
Seed = Annotated[Int, Field(ge=0, le=MAX_SEED, description="image i of n uses seed + i")]
PromptSyntax = Literal["plain", "weighted"]
ClipSkip = Annotated[
    Int, Field(ge=0, le=31, description="last layers of the text encoders that are passed over")
]
Side = Annotated[Int, Field(ge=8, multiple_of=8, description="pixels, a multiple of 8")]
ToldSide = Annotated[Int, Field(ge=1, le=MAX_TOLD, description="pixels")]
ToldSize = tuple[ToldSide, ToldSide]  # (height, width), as diffusers has it
Frames = Annotated[Int, Field(ge=1, le=MAX_FRAMES, description="frames of a video")]
Fps = Annotated[Int, Field(ge=1, le=60, description="frames a second")]
Count = Annotated[Int, Field(ge=1, description="images to make")]
Priority = Annotated[
    Int,
    Field(
        ge=BACKGROUND,
        le=10,
        description="higher goes first; 0 is normal, -10 what is idle and a tenth of the rest",
    ),
]
TimeoutS = Annotated[Float, Field(gt=0, le=3600, description="seconds until it is given up")]
Strength = Annotated[
    Float, Field(gt=0, le=1, description="how far the start image is noised; 1: as far as it goes")
]
Quality = Literal["low", "medium", "standard", "auto", "high", "hd", "xhigh", "max"]
Moderation = Literal["auto", "low"]
Scale = Annotated[Float, Field(ge=0, le=2, description="how strongly a condition acts")]
Fraction = Annotated[Float, Field(ge=0, le=1, description="of the steps")]
Threshold = Annotated[Int, Field(ge=0, le=255, description="of canny's edge strength")]
PartialImages = Annotated[Int, Field(ge=0, le=3, description="previews while it is made")]
AdapterWeight = Annotated[Float, Field(ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT)]

# A picture as a caller gives it: an array, the bytes of a file, or text: a data URL, an
# https:// URL, an s3:// URI, or the id of a control map.
ImageInput = np.ndarray | Annotated[bytes, Strict()] | Annotated[str, Strict()]
FramePictures = Annotated[tuple[ImageInput, ...], Field(min_length=1, max_length=MAX_FRAMES)]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_ARRAYS = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


@validated(frozen=True, config=_STRICT)
class LoraWeight:
    """A style adapter by its catalogue name, and how strongly it acts (1: as trained)."""

    name: Name
    weight: AdapterWeight = 1.0


LoraWeights = Annotated[tuple[LoraWeight, ...], Field(max_length=MAX_ENTRIES)]


@validated(frozen=True, config=_ARRAYS)
class Control:
    """A ControlNet by its type, and the picture it follows.

    Attributes:
        image: the picture, of which the type's preprocessor makes a control map; with
            `preprocessed`, the map itself, ready-made. Of a video also a picture of each frame.
        start, end: fractions of the steps between which it acts.
        low_threshold, high_threshold: of canny, 0-255.
    """

    type: Name
    image: ImageInput | FramePictures
    preprocessed: bool = False
    conditioning_scale: Scale = 0.5
    start: Fraction = 0.0
    end: Fraction = 1.0
    low_threshold: Threshold | None = None
    high_threshold: Threshold | None = None

    def pictures(self, place: str) -> dict[str, ImageInput]:
        """Those of `image` by how errors name them; `place`: of the control itself."""
        if isinstance(self.image, tuple):
            return {f"{place}.image.{index}": one for index, one in enumerate(self.image)}
        return {f"{place}.image": self.image}


@validated(frozen=True, config=_ARRAYS)
class IpAdapter:
    """Pictures that the image should resemble, all of it or a part.

    Attributes:
        name: of one of the model's IP-Adapters; `None`: its first.
        mask: a picture, stretched to the image's size; white is where the adapter acts (what is
            transparent counts as white, if anything is). `None`: everywhere.
    """

    images: tuple[ImageInput, ...] = Field(min_length=1, max_length=MAX_SEEN)
    scale: Scale = 0.5
    name: Name | None = None
    mask: ImageInput | None = None


IpAdapters = IpAdapter | Annotated[tuple[IpAdapter, ...], Field(max_length=MAX_IP_ADAPTERS)]

ControlList = Annotated[tuple[Control, ...], Field(max_length=MAX_ENTRIES)]


class Conditioned:
    """What both kinds of requests can be conditioned on beside their words."""

    controls: tuple[Control, ...]
    ip_adapter: IpAdapters | None

    @property
    def named_controls(self) -> dict[str, Control]:
        """`controls`, by how errors name them."""
        return {f"controls.{index}": one for index, one in enumerate(self.controls)}

    @property
    def ip_adapters(self) -> dict[str, IpAdapter]:
        """Those of `ip_adapter`, by how errors name them."""
        if isinstance(self.ip_adapter, tuple):
            return {f"ip_adapter.{index}": one for index, one in enumerate(self.ip_adapter)}
        return {} if self.ip_adapter is None else {"ip_adapter": self.ip_adapter}


@validated(frozen=True, config=_ARRAYS)
class ImageRequest(Conditioned):
    """An image, as a caller asks for it; `None` means the model's default.

    Attributes:
        quality: how many steps, beside what is usual: half with "low", twice with "high" and "hd",
            four times with "xhigh" and "max", at most 50; `num_inference_steps` wins.
        prompt_syntax: "plain": brackets are text; "weighted": `(word:1.3)`, `(word)` and `[word]`
            say how strongly words act, in both prompts.
        clip_skip: as in diffusers: 0 takes what the text encoders usually give, 1 what stands one
            layer before it (which others call 2).
        original_size: of sdxl, (height, width) that the picture is told to have had before it was
            scaled to what was trained on: less than its own draws it as if it had been blown up.
            `None`: its own.
        target_size: of sdxl, (height, width) that the picture is told to have. `None`: its own.
        image: the picture to start from: image-to-image, or with a mask inpainting.
        mask: white is made anew, black is kept; if it has an alpha channel, that decides
            alone: transparent is made anew.
        preserve_unmasked: pixels outside the mask come back exactly as they were; within it,
            where it is a light grey, they are mixed with what was made: soft edges.
        moderation: how strictly its pictures are checked, where a safety checker is configured.
        ip_adapter: pictures to resemble; several if different adapters, scales or masks act. What
            they add is summed up.

    Raises `pydantic.ValidationError` naming the field that is out of range.
    """

    prompt: Text
    model: Name | None = None
    negative_prompt: Text | None = None
    n: Count = 1
    width: Side | None = None
    height: Side | None = None
    quality: Quality | None = None
    num_inference_steps: Steps | None = None
    eta: Eta | None = None
    guidance_scale: Guidance | None = None
    prompt_syntax: PromptSyntax | None = None
    clip_skip: ClipSkip | None = None
    original_size: ToldSize | None = None
    target_size: ToldSize | None = None
    seed: Seed | None = None
    loras: LoraWeights = ()
    image: ImageInput | None = None
    mask: ImageInput | None = None
    strength: Strength | None = None
    preserve_unmasked: bool = True
    controls: ControlList = ()
    ip_adapter: IpAdapters | None = None
    partial_images: PartialImages = 0
    priority: Priority = 0
    timeout_s: TimeoutS | None = None
    moderation: Moderation | None = None


@validated(frozen=True, config=_ARRAYS)
class VideoRequest(Conditioned):
    """A video by AnimateDiff, as a caller asks for it; `None` means the model's default.

    Attributes:
        image: the picture that each frame starts from.
        strength: of it, how far the picture is noised.
        controls: each by one picture that all frames follow, or by a picture of each frame.
        ip_adapter: as of images; each frame resembles the same pictures.
        original_size, target_size: as of images.
        fps: frames a second of the file; the frames themselves do not depend on it.
        motion_loras: camera motions by their catalogue names.
        priority: below that of images, so that an image that waits goes before the next step.

    Raises `pydantic.ValidationError` naming the field that is out of range.
    """

    prompt: Text
    model: Name | None = None
    negative_prompt: Text | None = None
    width: Side | None = None
    height: Side | None = None
    num_frames: Frames = 16
    fps: Fps = 8
    num_inference_steps: Steps | None = None
    eta: Eta | None = None
    guidance_scale: Guidance | None = None
    prompt_syntax: PromptSyntax | None = None
    clip_skip: ClipSkip | None = None
    original_size: ToldSize | None = None
    target_size: ToldSize | None = None
    seed: Seed | None = None
    loras: LoraWeights = ()
    motion_loras: LoraWeights = ()
    image: ImageInput | None = None
    strength: Strength | None = None
    controls: ControlList = ()
    ip_adapter: IpAdapters | None = None
    priority: Priority = -1
    timeout_s: TimeoutS | None = None


@dataclass(frozen=True)
class Caller:
    """For whom a job is done.

    Attributes:
        name: of the key that it was asked with; empty without keys.
        weight: its share of a device for which several callers wait, beside theirs; 0.001 to
            1000.
        background: it has what others leave.

    Raises `ValueError` for another weight.
    """

    name: str = ""
    weight: float = 1.0
    background: bool = False

    @property
    def in_background(self) -> "Caller":
        """Who stands for a caller's requests of the lowest priority: they take turns of their own,
        with a tenth of its weight."""
        name = f"{self.name} (background)".lstrip()
        return Caller(name, self.weight * BACKGROUND_SHARE, background=True)

    def __post_init__(self) -> None:
        least = MIN_WEIGHT * BACKGROUND_SHARE if self.background else MIN_WEIGHT
        if not least <= self.weight <= MAX_WEIGHT:
            raise ValueError(
                f"a caller's weight is from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, not {self.weight}"
            )


@dataclass(frozen=True)
class ControlUse:
    """A ControlNet of a job.

    Attributes:
        maps: indices of its control maps among the job's arrays: one, or of a video one a frame.
    """

    type: str
    maps: tuple[int, ...]
    conditioning_scale: float = 0.5
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class IpAdapterUse:
    """An IP-Adapter of a job, by its name.

    Attributes:
        embeds: indices among the job's arrays, one an image.
        mask: the same, of where it acts.
    """

    name: str
    embeds: tuple[int, ...]
    scale: float = 0.5
    mask: int | None = None


@validated(frozen=True, config=_STRICT)
class ImageJob:
    """A request with every gap filled: what a diffusion replica works on.

    Pictures travel beside the job, as arrays that it names by index: each is an argument of its
    own in a handle call, so that a preprocessor's result goes straight to the replica.

    Attributes:
        job_id: unique; what a cancellation names.
        seeds: one per image, in order.
        original_size, target_size: (height, width) that sdxl is told; `None`: its own.
        image: index of the picture to start from, (height, width, 3) uint8.
        mask: index of the mask, (height, width) uint8: 255 is made anew, 0 is kept.
        strength: with `image`: the share of the steps that is taken.
        controls: maps of (height, width, 3) uint8 each.
        ip_adapters: embeddings as the image encoder makes them, (2, ...) float32: the
            picture's, and those of no picture. Masks of (height, width) uint8: 255 where it acts.
        num_frames: with it, every image of the job is a video of so many frames.
        timeout_s: seconds from submission; relative, because clocks of nodes differ.
        caller: between callers the device is shared by weight.
        refused_elsewhere: another replica had no room for it, and expects it back if this one has
            none either.
        asked_by: the replica of Serve that waits for it, by its full name: if that dies, the job is
            given up; `None`: whoever calls.
    """

    job_id: str
    prompt: str
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    width: Side
    height: Side
    negative_prompt: Text | None = None
    num_inference_steps: Steps = 4
    eta: Eta = 0.3
    guidance_scale: Guidance = 0.0
    prompt_syntax: PromptSyntax = "plain"
    clip_skip: ClipSkip = 0
    original_size: ToldSize | None = None
    target_size: ToldSize | None = None
    loras: tuple[LoraWeight, ...] = ()
    image: int | None = None
    mask: int | None = None
    strength: float = 1.0
    controls: tuple[ControlUse, ...] = ()
    ip_adapters: tuple[IpAdapterUse, ...] = ()
    num_frames: Frames | None = None
    motion_loras: tuple[LoraWeight, ...] = ()
    partial_images: PartialImages = 0
    priority: Priority = 0
    timeout_s: TimeoutS | None = None
    caller: Caller = Caller()
    refused_elsewhere: bool = False
    asked_by: str | None = None


def real_steps(num_inference_steps: int, strength: float) -> int:
    """Steps left of a schedule at a strength, as diffusers' image-to-image rounds it."""
    return min(int(num_inference_steps * strength), num_inference_steps)


@dataclass(frozen=True)
class Progress:
    """One more denoising step of one image is done: `step` of `steps`."""

    image_index: int
    step: int
    steps: int


@dataclass(frozen=True)
class PartialImage:
    """The decoded estimate of the final image (x0) after `step` real steps."""

    image_index: int
    partial_index: int
    step: int
    pixels: Pixels


@dataclass(frozen=True)
class Usage:
    """What a request cost, or one of its images.

    Attributes:
        prompt_tokens: text tokens read, begin and end marks not counted.
        image_tokens: 16 x 16 pixel patches made, over all images.
        denoising_steps: steps over all images.
    """

    prompt_tokens: int = 0
    image_tokens: int = 0
    denoising_steps: int = 0


@dataclass(frozen=True)
class FinishedImage:
    """An image that is done.

    Attributes:
        pixels: of a video (frames, height, width, 3).
        latents: the final ones, before the VAE's scaling; of a video (4, frames, h, w).
        usage: in a stream, this image's share of the request's: all images together have all of
            it, the text tokens with the first that is done.
        recipe: what it was made by; `None` where an engine or its replica says it.
        stages: of its whole job, up to now.
    """

    image_index: int
    seed: int
    pixels: Pixels
    latents: Latents
    usage: Usage = Usage()
    recipe: "Recipe | None" = None
    stages: Stages | None = None


@dataclass(frozen=True)
class FailedImage:
    """An image that will not come, and why; its siblings and neighbours go on. `stages`: of its
    whole job, up to now."""

    image_index: int
    error: Exception
    stages: Stages | None = field(default=None, compare=False)


JobEvent = Progress | PartialImage | FinishedImage | FailedImage  # what an engine says


@dataclass(frozen=True)
class ImageResult:
    """The answer to an `ImageRequest`.

    Attributes:
        model: the model that made it.
        images: one (height, width, 3) uint8 RGB array per image that was made; read-only when
            they arrived through a handle.
        seeds: the seed of each of `images`.
        failed: the images that could not be made, if not all of them. Where all failed, the
            error of the first is raised.
        recipe: what each of them was made by, with its seed; `None` where a replica says it.
        stages: of the job in its engine.
    """

    model: str
    images: tuple[Pixels, ...]
    seeds: tuple[int, ...]
    width: int
    height: int
    usage: Usage
    failed: tuple[FailedImage, ...] = ()
    recipe: "Recipe | None" = None
    stages: Stages | None = None


@dataclass(frozen=True)
class VideoResult:
    """The answer to a `VideoRequest`. `frames`: (frames, height, width, 3) uint8."""

    model: str
    frames: Pixels
    seed: int
    fps: int
    usage: Usage
    recipe: "Recipe | None" = None


@dataclass(frozen=True)
class Completed:
    """The end of a stream: every image has come. `stages`: of the job in its engine."""

    model: str
    usage: Usage
    stages: Stages | None = None


StreamEvent = Progress | PartialImage | FinishedImage | FailedImage | Completed  # what callers see
