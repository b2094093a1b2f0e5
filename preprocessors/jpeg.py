"""The marker segments of a JPEG file (ITU T.81, annex B): what to keep, what to count. No torch.

Two things make this worth doing before a decoder sees the file. A progressive JPEG may hold
any number of scans, twelve bytes each, and every one costs a pass over all pixels: 100 kB can
keep a decoder busy for minutes. And metadata is the larger part of what decoders parse and
get wrong; nothing of it but the orientation matters here.
"""

import re
from typing import NamedTuple

_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_APP1, _APP2, _COMMENT = 0xE1, 0xE2, 0xFE
# Colour handling needs APP0 (JFIF), APP14 (Adobe) and ICC profiles.
_METADATA = frozenset({*range(_APP1, 0xEE), 0xEF, _COMMENT})
# In coded pixels, a byte FF is followed by 00 or by a restart marker, D0 to D7.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


class Jpeg(NamedTuple):
    """A JPEG file, read as segments.

    Attributes:
        bare: the same picture without metadata; ICC profiles stay.
        exif: the content of the first EXIF segment, from `Exif\\0\\0` on; empty if there is none.
        scans: how often a decoder has to go through the pixels; 0: there are no pixels.
    """

    bare: bytes
    exif: bytes
    scans: int


def read_segments(data: bytes) -> Jpeg:
    """Reads the segments of the first picture in `data`, which starts with FF D8.

    Never raises: damaged pixels are the decoder's to find.
    """
    kept, exif, scans, at = [data[:2]], b"", 0, 2
    pixels = len(data)
    while found := _MARKER.search(data, at):
        start, body = found.span()
        marker = data[body - 1]
        if marker == _EOI:
            break
        if marker in (_SOI, _TEM):
            at = body
            continue
        at = body + max(2, int.from_bytes(data[body : body + 2], "big"))
        if marker == _SOS:
            pixels = pixels if scans else start
            scans += 1
        elif not scans:
            content = data[body + 2 : at]
            if marker == _APP1 and content.startswith(b"Exif\0\0") and not exif:
                exif = content
            is_profile = marker == _APP2 and content.startswith(b"ICC_PROFILE\0")
            if is_profile or marker not in _METADATA:
                kept.append(data[start:at])
    return Jpeg(b"".join([*kept, data[pixels:]]), exif, scans)
