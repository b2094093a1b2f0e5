"""Fréchet distance between sets of pictures, on features of a classifier trained on the world.

The classifier is the demo's CLIP vision encoder: it was trained to name shape, colour, size and
place of each solid and the background. The features are the states of its patches after the
first block, averaged over the picture: what comes later names solids and does not see a blur.
FID (arXiv 1706.08500) does the same with Inception; a distance here compares with others of
this project and with nothing else.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPVisionModelWithProjection

from demo.train.image_encoder import preprocessed

BATCH = 50
PARTS = 20  # of a set of pictures, left out in turn

Array = NDArray[np.float64]


class Features:
    """The states of the encoder in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._encoder: CLIPVisionModelWithProjection = (
            CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32).eval()
        )

    @torch.no_grad()
    def __call__(self, pixels: NDArray[np.uint8]) -> Array:
        """(n, 64, 64, 3) to (n, width)."""
        parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        device = torch.device("cpu")
        states = [
            self._encoder(preprocessed(part, device), output_hidden_states=True).hidden_states[1]
            for part in parts
        ]
        features: Array = torch.cat(states).mean(1).double().numpy()
        return features


def frechet_distance(first: Array, second: Array) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets of features (n, width).

    Features are in units of their deviation in the first set, so that each counts alike.
    """
    deviation = first.std(0)
    first, second = first / deviation, second / deviation
    apart = first.mean(0) - second.mean(0)
    one, two = np.cov(first.T), np.cov(second.T)
    # The eigenvalues of S1 S2 are those of a positive matrix: real, but for rounding.
    roots = np.sqrt(np.linalg.eigvals(one @ two).real.clip(0))
    return float(apart @ apart + np.trace(one) + np.trace(two) - 2 * roots.sum())


def standard_error(first: Array, second: Array) -> float:
    """Of their Fréchet distance, for the choice of the second set: a jackknife that leaves out one
    of `PARTS` parts of it in turn."""
    rows = np.arange(len(second)) % PARTS
    left = [frechet_distance(first, second[rows != part]) for part in range(PARTS)]
    return float(np.sqrt((PARTS - 1) * np.var(left)))
