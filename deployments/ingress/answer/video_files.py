"""Frames to the bytes of a video file."""

import io

import av
import numpy as np
from PIL import Image

from deployments.contracts.jobs import Pixels
from deployments.contracts.videos import VideoFormat
from deployments.ingress.answer.exif import EXIF_PREFIX
from deployments.ingress.answer.metadata import Metadata

# Browsers show a frame of less than 20 ms for 100 ms; gif knows hundredths of a second.
GIF_TICK_MS, GIF_LEAST_MS = 10, 20
WEBP_TICK_MS = 1
# With x264's macroblock tree the same frames are another file now and then.
X264 = {"crf": "17", "x264-params": "mbtree=0"}
VIDEO_TYPES: dict[VideoFormat, str] = {
    "mp4": "video/mp4",
    "gif": "image/gif",
    "webp": "image/webp",
}


def encode_video(
    frames: Pixels, fps: int, output_format: VideoFormat, metadata: Metadata | None = None
) -> bytes:
    """A video file that plays once around (mp4) or for ever (gif, webp), in frames / fps seconds.

    Args:
        frames: (frames, height, width, 3) uint8 RGB, sides even.
        fps: frames a second; above 50, a gif leaves out frames here and there.
        metadata: in an mp4 as comment and description, in a webp as EXIF; the comment of a gif is
            the first of its texts alone.
    """
    file = io.BytesIO()
    if output_format == "mp4":
        _encode_mp4(file, frames, fps, metadata)
    elif output_format == "webp":
        times = frame_times(len(frames), fps, WEBP_TICK_MS)
        # Pillow takes the prefix, which a webp has not, from pictures alone.
        exif = b"" if metadata is None else metadata.exif().removeprefix(EXIF_PREFIX)
        _save(file, "WEBP", frames, times, lossless=True, exif=exif)
    else:
        times = frame_times(len(frames), fps, GIF_TICK_MS, GIF_LEAST_MS)
        comment = b"" if metadata is None else metadata.parameters.encode()
        # Each frame has a palette of its own.
        _save(file, "GIF", frames, times, optimize=False, comment=comment)
    return file.getvalue()


def frame_times(frames: int, fps: int, tick_ms: int, least_ms: int = 1) -> list[tuple[int, int]]:
    """Which frames a file has, and for how many ms it shows each, in whole ticks.

    All together take frames / fps seconds, to a tick; what is rounded is spread evenly. Frames are
    left out evenly where there are too many for `least_ms` each.
    """
    least = -(-least_ms // tick_ms)
    ticks = max(round(1000 * frames / fps / tick_ms), least)
    shown = min(frames, ticks // least)
    ends = [(index + 1) * ticks // shown for index in range(shown)]
    begins = [0, *ends]
    return [
        (index * frames // shown, (end - begin) * tick_ms)
        for index, (begin, end) in enumerate(zip(begins, ends, strict=False))
    ]


def _save(
    file: io.BytesIO, kind: str, frames: Pixels, times: list[tuple[int, int]], **options: object
) -> None:
    first, *rest = [Image.fromarray(frames[index]) for index, _ in times]
    durations = [ms for _, ms in times]
    first.save(file, kind, save_all=True, append_images=rest, duration=durations, loop=0, **options)


def _encode_mp4(file: io.BytesIO, frames: Pixels, fps: int, metadata: Metadata | None) -> None:
    with av.open(file, "w", format="mp4") as container:
        if metadata is not None:
            container.metadata["comment"] = metadata.parameters
            container.metadata["description"] = metadata.keyed
        stream = container.add_stream("libx264", rate=fps, options=X264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
