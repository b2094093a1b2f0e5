"""What images were made by: enough to make them again."""

from dataclasses import dataclass

from deployments.contracts.jobs import Control, IpAdapter, LoraWeight, PromptSyntax, ToldSize

KEY = "tcd"  # of the text in a file that is its request


@dataclass(frozen=True)
class Recipe:
    """A request with every gap filled, but for the seed, which each of its images has of its own.

    The pictures themselves are not in it. A field that held some has their names: "sha256:" and the
    SHA-256 of its file as hex (of an array, of its shape and pixels), or the id of a control map.

    Attributes:
        width, height: pixels.
        original_size, target_size: (height, width) that sdxl was told, where they were asked for.
        strength: of images with a start picture.
        num_frames, fps: of videos.
    """

    model: str
    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    num_inference_steps: int
    eta: float
    guidance_scale: float
    prompt_syntax: PromptSyntax
    clip_skip: int
    original_size: ToldSize | None = None
    target_size: ToldSize | None = None
    loras: tuple[LoraWeight, ...] = ()
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    preserve_unmasked: bool = True
    controls: tuple[Control, ...] = ()
    ip_adapters: tuple[IpAdapter, ...] = ()
    num_frames: int | None = None
    fps: int | None = None
    motion_loras: tuple[LoraWeight, ...] = ()
