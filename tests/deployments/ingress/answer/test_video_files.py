"""Files of videos: how long frames are shown, and what is said of them, read back."""

import io
import json
from dataclasses import replace
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from deployments.contracts.recipe import Recipe
from deployments.contracts.videos import VideoFormat
from deployments.ingress.answer.metadata import metadata_of
from deployments.ingress.answer.video_files import encode_video
from tests.deployments.ingress.answer import a1111
from tests.deployments.ingress.answer.test_metadata import PLAIN

RECIPE: Recipe = replace(PLAIN, num_frames=4, fps=8, prompt='a "red" ball \U0001f534, at night\x00')


def greys(frames: int) -> Any:
    """Frames that are told apart by their brightness."""
    levels = np.linspace(0, 255, frames).round().astype(np.uint8)
    return np.tile(levels[:, None, None, None], (1, 16, 16, 3))


def shown(file: bytes) -> tuple[list[int], list[int]]:
    """(brightness, ms) of each frame."""
    frames = [
        (int(np.asarray(frame.convert("L"))[0, 0]), int(frame.info["duration"]))
        for frame in ImageSequence.Iterator(Image.open(io.BytesIO(file)))
    ]
    levels, times = zip(*frames, strict=True)
    return list(levels), list(times)


@pytest.mark.parametrize("fps", [1, 3, 7, 8, 12, 15, 24, 30, 33, 48, 50])
@pytest.mark.parametrize("frames", [1, 16, 100])
def test_a_gif_lasts_as_long_as_its_video(frames: int, fps: int) -> None:
    levels, times = shown(encode_video(greys(frames), fps, "gif"))
    assert len(levels) == frames
    assert abs(sum(times) - 1000 * frames / fps) <= 5 + 20 * (frames == 1)
    assert min(times) >= 20
    assert max(times) - min(times) in (0, 10)


@pytest.mark.parametrize("fps", [51, 55, 60])
def test_a_gif_above_50_frames_a_second_leaves_some_out(fps: int) -> None:
    """Browsers show a frame of less than 20 ms for 100 ms."""
    levels, times = shown(encode_video(greys(120), fps, "gif"))
    assert abs(sum(times) - 1000 * 120 / fps) <= 5
    assert min(times) >= 20
    assert len(levels) < 120
    kept = np.searchsorted(greys(120)[:, 0, 0, 0], levels)
    assert kept[0] == 0
    assert set(np.diff(kept)) == {1, 2}  # never two in a row
    # Each frame begins when it would have.
    begins = np.cumsum([0, *times[:-1]])
    assert np.abs(begins - kept * 1000 / fps).max() <= 20


@pytest.mark.parametrize("fps", [7, 24, 60])
def test_a_webp_lasts_as_long_as_its_video(fps: int) -> None:
    image = Image.open(io.BytesIO(encode_video(greys(50), fps, "webp")))
    times = []
    for index in range(50):
        image.seek(index)
        image.load()
        times.append(image.info["duration"])
    assert abs(sum(times) - 1000 * 50 / fps) <= 1


@pytest.mark.parametrize("output_format", ["mp4", "gif", "webp"])
@pytest.mark.parametrize("written", [True, False])
def test_how_it_was_made(output_format: VideoFormat, written: bool) -> None:
    metadata = metadata_of(RECIPE, 7, output_format)
    file = encode_video(greys(4), 8, output_format, metadata if written else None)
    said, request = comments(file, output_format)
    if not written:
        assert (said, request) == (None, None)
        return
    assert said is not None
    read = a1111.parse(said)
    assert read.prompt == 'a "red" ball \U0001f534, at night'
    assert (read.figures["Frames"], read.figures["FPS"]) == ("4", "8")
    if output_format == "gif":
        assert request is None
        return
    assert request is not None
    asked = json.loads(request)["tcd"]
    assert asked["prompt"] == RECIPE.prompt
    assert (asked["num_frames"], asked["fps"], asked["seed"]) == (4, 8, 7)
    assert "n" not in asked


def test_the_exif_of_a_webp_begins_as_its_format_says() -> None:
    """With TIFF's header: `Exif` and two zeros are for JPEG."""
    file = encode_video(greys(4), 8, "webp", metadata_of(RECIPE, 7, "webp"))
    chunk = file.index(b"EXIF")
    assert file[chunk + 8 : chunk + 12] == b"MM\0*"


def comments(file: bytes, output_format: VideoFormat) -> tuple[str | None, str | None]:
    if output_format == "mp4":
        with av.open(io.BytesIO(file)) as container:
            said = container.metadata
        return said.get("comment"), said.get("description")
    return a1111.infotext_of(file), Image.open(io.BytesIO(file)).getexif().get(0x010E)


def test_the_same_frames_are_the_same_mp4() -> None:
    frames = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), np.uint8)
    assert len({encode_video(frames, 8, "mp4") for _ in range(100)}) == 1
