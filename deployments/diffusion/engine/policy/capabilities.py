"""What a model can be asked for. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from deployments.contracts.cards import ControlKind
from deployments.contracts.jobs import MAX_STEPS


@dataclass(frozen=True)
class ImageEmbeds:
    """Which embeddings of a picture an IP-Adapter reads.

    Attributes:
        hidden: the image encoder's last but one states, (tokens, width), instead of its
            projected embedding, (width,).
        width: that width.
    """

    hidden: bool
    width: int


@dataclass(frozen=True)
class Capabilities:
    """What requests may ask of a model's parts.

    Attributes:
        takes_mask: it only inpaints.
        controls: what it can be controlled by, by type.
        image_prompts: what its IP-Adapters read, by their names.
        makes_videos: it has motion layers.
        max_steps: of its schedule.
        max_clip_skip: layers of its text encoders that may be passed over.
        told_size: its UNet is told the picture's size, and what it was (sdxl).
    """

    takes_mask: bool
    controls: Mapping[str, ControlKind]
    image_prompts: Mapping[str, ImageEmbeds]
    makes_videos: bool
    max_steps: int = MAX_STEPS
    max_clip_skip: int = 0
    told_size: bool = False
