"""How a request passes the preprocessors: what `graphs.routing` tells the ingress."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from deployments.contracts.jobs import ImageRequest, VideoRequest


@dataclass(frozen=True)
class Route:
    """What of a request passes a preprocessor, and which.

    Attributes:
        field, index: which: of `controls`, each of whose pictures passes it, or of all pictures in
            `ip_adapter`.
        preprocessor: "depth", "canny" or "image_encoder".
    """

    field: Literal["controls", "ip_adapter"]
    index: int
    preprocessor: str


Router = Callable[[ImageRequest | VideoRequest], tuple[Route, ...]]
