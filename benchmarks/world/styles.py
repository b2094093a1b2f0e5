"""How far pictures have gone from the world's own look to that of a style."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.world.drawing import Pixels, bodies, draw, looks_of
from demo.client import Client
from demo.world.checker import shrunk
from demo.world.renderer import draw as draw_scene
from demo.world.scene import Scene
from demo.world.style import STYLES, Style, draw_in_style

Array = NDArray[np.float64]

WHITE, BLACK = 0.9, 0.1
LEAST = 0.01  # deviation of a description, of 1


class StyleScores:
    """Scores by the renderer: plainly drawn pictures score 0, those in a style 1 in it alone.

    A picture is described by colours, saturation, contrast and detail. How far descriptions
    went from the plain scenes' to the styled ones' is told for all styles at once, by least
    squares, so that one style does not count for what it has in common with another.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        pairs = list(zip(scenes, looks_of(scenes), strict=True))
        plain = _described(np.stack([draw_scene(*pair).pixels for pair in pairs]))
        self._plain, self._units = plain.mean(0), plain.std(0) + LEAST
        ways = [
            _described(np.stack([draw_in_style(*pair, style) for pair in pairs])).mean(0)
            - self._plain
            for style in STYLES
        ]
        self._scores_of: Array = np.linalg.pinv(np.stack(ways, axis=1) / self._units[:, None])

    def __call__(self, drawn: Pixels, style: Style) -> float:
        """The mean score of pictures in one style."""
        small = np.stack([shrunk(picture) for picture in drawn])
        away = (_described(small).mean(0) - self._plain) / self._units
        return float((self._scores_of @ away)[STYLES.index(style)])


def styled(
    client: Client, model: str, scenes: Sequence[Scene], weights: Mapping[Style, float]
) -> Pixels:
    """Pictures of the scenes with style LoRAs."""
    loras = [{"name": name, "weight": weight} for name, weight in weights.items()]
    return draw(client, bodies(scenes, model=model, loras=loras))


def _described(pixels: Pixels) -> Array:
    """(n, 13): mean colour, its deviation, saturation, shares of white and black, detail."""
    values = pixels / 255
    high, low = values.max(-1), values.min(-1)
    parts = [
        values.mean((1, 2)),
        values.std((1, 2)),
        np.abs(np.diff(values, axis=2)).mean((1, 2)),
        np.stack(
            [
                (high - low).mean((1, 2)),
                (high - low).std((1, 2)),
                (low > WHITE).mean((1, 2)),
                (high < BLACK).mean((1, 2)),
            ],
            axis=1,
        ),
    ]
    return np.concatenate(parts, axis=1)
