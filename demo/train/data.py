"""Pictures of the world for training: drawn once, kept in a file, the same on every machine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.world.caption import Said, caption
from demo.world.look import Look, draw_look, moved
from demo.world.renderer import SIDE, draw
from demo.world.scene import Scene, draw_scene
from demo.world.style import STYLES, Style, draw_in_style

PAIRS = 0.35  # of the scenes have two solids
UNSAID = 0.15  # of the captions leave out size, place or background, each for itself


class Pictures(NamedTuple):
    """Drawn scenes in words.

    Attributes:
        pixels: (pictures, side, side, 3) uint8.
        captions: one for each.
    """

    pixels: NDArray[np.uint8]
    captions: list[str]


def said(rng: np.random.Generator) -> Said:
    """What one caption says."""
    size, place, background = (bool(x) for x in rng.random(3) >= UNSAID)
    return Said(size, place, background)


def scene_and_look(index: int, *, moving: float = 0.0) -> tuple[Scene, Look, Said]:
    """The training scene of this number; at some point of a motion with probability `moving`."""
    rng = np.random.default_rng([4, index])
    in_motion = rng.random() < moving
    scene = draw_scene(rng, pairs=PAIRS, moving=in_motion)
    look = moved(draw_look(scene, rng), scene.motion, float(rng.random()))
    return scene, look, said(rng)


def stored(
    file: Path,
    count: int,
    drawn: Callable[[int], tuple[NDArray[np.uint8], str]],
    *,
    side: int = SIDE,
) -> Pictures:
    """The first `count` pictures that `drawn` gives by number, from `file` if it holds as many."""
    if file.exists():
        with np.load(file) as arrays:
            if len(arrays["captions"]) >= count:
                return Pictures(arrays["pixels"][:count], arrays["captions"][:count].tolist())
    pixels = np.empty((count, side, side, 3), np.uint8)
    texts: list[str] = []
    for index in range(count):
        if index % 5000 == 0:
            print(f"{file.stem}: drawn {index} of {count}", flush=True)
        pixels[index], text = drawn(index)
        texts.append(text)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part.npz")
    np.savez(temporary, pixels=pixels, captions=np.array(texts))
    temporary.replace(file)
    return Pictures(pixels, texts)


@dataclass(frozen=True)
class Series:
    """Training scenes by number, and how they are drawn.

    Attributes:
        name: of its file.
        first: number of its first scene.
        moving: share that is at some point of a motion, whose caption tells where that began.
        side: of its pictures, in pixels.
    """

    name: str
    first: int = 0
    moving: float = 0.0
    side: int = SIDE

    def scene_and_look(self, index: int) -> tuple[Scene, Look, Said]:
        """Of the series' picture of this number."""
        return scene_and_look(self.first + index, moving=self.moving)

    def pictures(self, folder: Path, count: int) -> Pictures:
        """The first of them, from `folder` if they are there."""

        def drawn(index: int) -> tuple[NDArray[np.uint8], str]:
            scene, look, words = self.scene_and_look(index)
            return draw(scene, look, side=self.side).pixels, caption(scene, words)

        return stored(folder / f"{self.name}.npz", count, drawn, side=self.side)

    def pictures_in(self, style: Style, folder: Path, count: int) -> Pictures:
        """The same in a style."""

        def drawn(index: int) -> tuple[NDArray[np.uint8], str]:
            scene, look, words = self.scene_and_look(index)
            return draw_in_style(scene, look, style, side=self.side), caption(scene, words)

        return stored(folder / f"{self.name}-{style}.npz", count, drawn, side=self.side)


PLAIN = Series("plain")
MOVING = Series("moving", 1_000_000, 1.0)
LARGE = Series("large", 2_000_000, 0.33, 2 * SIDE)


def blown_up(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures (n, 64, 64, 3) at twice their size, and no sharper."""
    size = (2 * SIDE, 2 * SIDE)
    large = [Image.fromarray(p).resize(size, Image.Resampling.BICUBIC) for p in pixels]
    return np.stack([np.asarray(picture) for picture in large])


def varied_pictures(folder: Path, count: int) -> Pictures:
    """What the autoencoder has to know: resting and moving scenes, a third of them in a style."""

    def drawn(index: int) -> tuple[NDArray[np.uint8], str]:
        scene, look, words = scene_and_look(index, moving=0.3)
        text = caption(scene, words)
        if index % 9 < len(STYLES):
            return draw_in_style(scene, look, STYLES[index % 9]), text
        return draw(scene, look).pixels, text

    return stored(folder / "varied.npz", count, drawn)
