"""How a request passes the preprocessors: what `graphs.routing` tells the ingress."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from deployments.contracts.jobs import ImageRequest


@dataclass(frozen=True)
class Route:
    """One picture of a request, and the preprocessor that it passes.

    Attributes:
        field, index: which picture: of `controls`, or of all in `ip_adapter`.
        preprocessor: "depth", "canny" or "image_encoder".
    """

    field: Literal["controls", "ip_adapter"]
    index: int
    preprocessor: str


Router = Callable[[ImageRequest], tuple[Route, ...]]
