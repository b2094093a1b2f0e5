"""Frames to the bytes of a video file."""

import io

import av
import numpy as np
from PIL import Image

from deployments.contracts.jobs import Pixels
from deployments.contracts.videos import VideoFormat

VIDEO_TYPES: dict[VideoFormat, str] = {
    "mp4": "video/mp4",
    "gif": "image/gif",
    "webp": "image/webp",
}


def encode_video(frames: Pixels, fps: int, output_format: VideoFormat) -> bytes:
    """A video file that plays once around (mp4) or for ever (gif, webp).

    Args:
        frames: (frames, height, width, 3) uint8 RGB, sides even.
        fps: frames a second; gif rounds the time of a frame to 10 ms.
    """
    file = io.BytesIO()
    if output_format == "mp4":
        _encode_mp4(file, frames, fps)
    else:
        first, *rest = [Image.fromarray(frame) for frame in frames]
        # WebP keeps the colours; the GIF writer gives each frame a palette of its own.
        options = {"lossless": True} if output_format == "webp" else {"optimize": False}
        first.save(
            file,
            output_format.upper(),
            save_all=True,
            append_images=rest,
            duration=round(1000 / fps),
            loop=0,
            **options,
        )
    return file.getvalue()


def _encode_mp4(file: io.BytesIO, frames: Pixels, fps: int) -> None:
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "17"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
