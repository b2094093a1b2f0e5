"""What a model can be asked for. No torch."""

from dataclasses import dataclass

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
        controls: types of its ControlNets.
        image_prompt: what its IP-Adapter reads; `None`: it has none.
        max_frames: of its motion layers; 0: it makes no videos.
        max_steps: of its schedule.
        max_clip_skip: layers of its text encoders that may be passed over.
    """

    takes_mask: bool
    controls: frozenset[str]
    image_prompt: ImageEmbeds | None
    max_frames: int
    max_steps: int = MAX_STEPS
    max_clip_skip: int = 0
