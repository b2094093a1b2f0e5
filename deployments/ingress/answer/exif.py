"""Texts as EXIF: the smallest TIFF structure that holds them.

Pillow writes a user comment as BYTE, which other readers do not take for text.
"""

import struct

IMAGE_DESCRIPTION, EXIF_IFD, USER_COMMENT = 0x010E, 0x8769, 0x9286
ASCII, LONG, UNDEFINED = 2, 4, 7
EXIF_PREFIX = b"Exif\0\0"  # in front of the structure, in a JPEG
HEADER_BYTES = 8
UNICODE = b"UNICODE\0"  # what follows is UTF-16 in the byte order of the whole

Entry = tuple[int, int, bytes]  # a tag, the type of its value, and the value


def exif(comment: str | None, description: str | None) -> bytes:
    """`comment` as UserComment, in any characters; `description` as ImageDescription, in ASCII."""
    inner, main = b"", list[Entry]()
    if description is not None:
        main.append((IMAGE_DESCRIPTION, ASCII, description.encode("ascii") + b"\0"))
    if comment is not None:
        text = UNICODE + comment.encode("utf-16-be")
        inner = _directory([(USER_COMMENT, UNDEFINED, text)], HEADER_BYTES)
        main.append((EXIF_IFD, LONG, struct.pack(">I", HEADER_BYTES)))
    place = HEADER_BYTES + len(inner)
    header = struct.pack(">2sHI", b"MM", 42, place)
    return b"".join([EXIF_PREFIX, header, inner, _directory(main, place)])


def _directory(entries: list[Entry], place: int) -> bytes:
    """A directory that stands at `place`, and behind it the values that are too long for it."""
    behind = place + 2 + 12 * len(entries) + 4
    fields, values = [struct.pack(">H", len(entries))], []
    for tag, kind, value in entries:
        count = len(value) // 4 if kind == LONG else len(value)
        fields.append(struct.pack(">HHI", tag, kind, count))
        if len(value) <= 4:
            fields.append(value.ljust(4, b"\0"))
        else:
            fields.append(struct.pack(">I", behind))
            values.append(value + b"\0" * (len(value) % 2))
            behind += len(values[-1])
    return b"".join([*fields, bytes(4), *values])
