"""How sharp pictures are: of those that were blown up no edge is."""

import numpy as np

from benchmarks.world.drawing import Pixels


def sharpness(drawn: Pixels) -> float:
    """The mean step from a pixel to its neighbour, of 255, each weighted by itself: where one
    colour becomes another in one step it is that step, in two half of it."""
    grey = drawn.astype(float).mean(axis=-1)
    steps = np.abs(np.diff(grey, axis=2))
    return float(np.mean((steps**2).sum((1, 2)) / np.maximum(steps.sum((1, 2)), 1e-9)))
