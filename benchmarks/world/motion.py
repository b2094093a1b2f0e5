"""Whether videos move as their captions say."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.world.drawing import at_once, looks_of, picture_of
from demo.client import Body, Client, Picture
from demo.world.camera import CameraMotion, filmed
from demo.world.caption import caption
from demo.world.checker import middles
from demo.world.renderer import COLOUR_RGB, HORIZON, SIDE
from demo.world.scene import MOTIONS, Colour, Motion, Place, Scene

FRAMES = 8
STEPS = 8
ALIKE = 0.965  # cosine of colours; sand is 0.93 like yellow, a blue sky 0.92 like cyan
DARK = 0.3  # a night sky has 0.2
EDGE = 2  # rows of pixels above the horizon that may show it
MOVED = 4.0  # pixels: a solid that moves less rests


def videos(
    client: Client, scenes: Sequence[Scene], motion: Motion | None, **fields: object
) -> list[list[Picture]]:
    """A video of each scene with this motion; video i has seed i."""
    asked: list[Body] = [
        {
            "model": "sd15",
            "prompt": caption(replace(scene, motion=motion)),
            "seed": seed,
            "num_frames": FRAMES,
            "num_inference_steps": STEPS,
            "output_format": "webp",
            **fields,
        }
        for seed, scene in enumerate(scenes)
    ]
    return at_once(asked, client.video)


def seen_motion(frames: Sequence[Picture]) -> Motion | None:
    """What the first solid of each frame does, by where its middle is."""
    places = [found[0] for frame in frames if (found := middles(np.asarray(frame)))]
    if len(places) < 2:
        return None
    columns, rows = np.array(places).T
    aside, jump = columns[-1] - columns[0], (rows[0] + rows[-1]) / 2 - rows.min()
    if max(abs(aside), jump) < MOVED:
        return None
    if jump > abs(aside):
        return "jumping"
    return "rolling right" if aside > 0 else "rolling left"


def with_room(scene: Scene, motion: Motion | None) -> Scene:
    """The scene of one solid, which rolls from the side that it leaves: so it stays in sight."""
    starts: dict[Motion | None, Place] = {"rolling left": "right", "rolling right": "left"}
    (solid,) = scene.solids
    return replace(scene, solids=(replace(solid, place=starts.get(motion, solid.place)),))


def obeyed(
    client: Client, scenes: Sequence[Scene], motions: Sequence[Motion | None] = (*MOTIONS, None)
) -> dict[Motion | None, float]:
    """The share of videos of one solid that do what was asked, by motion; `None`: rest."""
    shares: dict[Motion | None, float] = {}
    for motion in motions:
        made = videos(client, [with_room(scene, motion) for scene in scenes], motion)
        shares[motion] = float(np.mean([seen_motion(frames) == motion for frames in made]))
    return shares


def centred(scene: Scene) -> Scene:
    """The scene of one solid, in the middle."""
    (solid,) = scene.solids
    return replace(scene, solids=(replace(solid, place="center"),))


def truly_filmed(
    scenes: Sequence[Scene], camera: CameraMotion, strength: float
) -> list[list[Picture]]:
    """The renderer's own videos by a moving camera."""
    return [
        [picture_of(pixels) for pixels in filmed(camera, scene, look, FRAMES, strength)]
        for scene, look in zip(scenes, looks_of(scenes), strict=True)
    ]


def camera_motion(
    scenes: Sequence[Scene], made: Sequence[Sequence[Picture]]
) -> tuple[float, float, float]:
    """Mean `growth`, `drift` and `dirt` of videos of scenes with one solid."""
    pairs = [(frames, scene.solids[0].colour) for scene, frames in zip(scenes, made, strict=True)]
    grown, gone, soiled = (
        float(np.nanmean([measure(*pair) for pair in pairs])) for measure in (growth, drift, dirt)
    )
    return grown, gone, soiled


def growth(frames: Sequence[Picture], colour: Colour) -> float:
    """How many times as wide the solid of this colour ends: above 1 in a zoom."""
    first, last = (_columns(frame, colour) for frame in (frames[0], frames[-1]))
    if not len(first) or not len(last):
        return float("nan")
    return float((np.ptp(last) + 1) / (np.ptp(first) + 1))


def drift(frames: Sequence[Picture], colour: Colour) -> float:
    """How far the solid of this colour has gone to the right in the end, in pixels."""
    first, last = (_columns(frame, colour) for frame in (frames[0], frames[-1]))
    return float(last.mean() - first.mean()) if len(first) and len(last) else float("nan")


def dirt(frames: Sequence[Picture], colour: Colour) -> float:
    """How far pixels of the last frame's sky are from their row's median, of 255: a clean sky, near
    or far, has one colour in each row. Those that the solid of this colour hides do not count."""
    pixels = np.asarray(frames[-1]).astype(float)
    sky = ~_coloured(frames[-1], colour)[: int(HORIZON * SIDE) - EDGE]
    rows = [row[clear] for row, clear in zip(pixels[: len(sky)], sky, strict=True) if clear.any()]
    return float(np.mean(np.concatenate([np.abs(row - np.median(row, axis=0)) for row in rows])))


def _columns(frame: Picture, colour: Colour) -> NDArray[np.intp]:
    """The column of each pixel in this colour."""
    return np.nonzero(_coloured(frame, colour))[1]


def _coloured(frame: Picture, colour: Colour) -> NDArray[np.bool_]:
    """Which pixels are in this colour, lit or not; the floor may lie anywhere."""
    pixels, wanted = np.asarray(frame) / 255, np.array(COLOUR_RGB[colour])
    lengths = np.linalg.norm(pixels, axis=-1)
    alike = pixels @ wanted / np.linalg.norm(wanted) > ALIKE * lengths
    coloured: NDArray[np.bool_] = alike & (lengths > DARK)
    return coloured
