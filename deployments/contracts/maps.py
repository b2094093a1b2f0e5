"""What the ingress and the map store say to each other about preprocessed pictures."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TypeGuard


@dataclass(frozen=True)
class MapSpec:
    """A preprocessed picture: of which picture, by what, with which parameters.

    Attributes:
        preprocessor: "depth", "canny", or "image_encoder".
        digest: SHA-256 of the picture's pixels, as hex.
        width, height: of a control map; 0 for embeddings.
        encoder: which image encoder.
        hidden: the encoder's last but one states, which `plus` adapters read.
    """

    preprocessor: str
    digest: str
    width: int = 0
    height: int = 0
    low_threshold: int = 100
    high_threshold: int = 200
    encoder: str = ""
    hidden: bool = False

    @property
    def map_id(self) -> str:
        """The same for the same picture and parameters, on every replica."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"map-{self.preprocessor}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def is_map_id(image: object) -> TypeGuard[str]:
    """Whether a picture is named by the id of a control map."""
    return isinstance(image, str) and image.startswith("map-")


@dataclass(frozen=True)
class MapRef:
    """Where a map is, or will be. `ref`: a Ray object reference; `None`: it is not known."""

    map_id: str
    ref: object
