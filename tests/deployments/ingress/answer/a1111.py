"""How AUTOMATIC1111's web UI reads its own infotext: the expressions are its `infotext_utils.py`'s,
those of comments in pictures its `images.py`'s and piexif's."""

import json
import re
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

RE_PARAM = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
RE_IMAGESIZE = re.compile(r"^(\d+)x(\d+)$")
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286


@dataclass(frozen=True)
class Infotext:
    """What is pasted into its fields."""

    prompt: str
    negative_prompt: str
    figures: dict[str, str]


def parse(text: str) -> Infotext:
    """`parse_generation_parameters`, without what follows for its own settings."""
    prompt = negative_prompt = ""
    done_with_prompt = False
    *lines, lastline = text.strip().split("\n")
    if len(RE_PARAM.findall(lastline)) < 3:
        lines.append(lastline)
        lastline = ""
    for line in lines:
        line = line.strip()
        if line.startswith("Negative prompt:"):
            done_with_prompt = True
            line = line[16:].strip()
        if done_with_prompt:
            negative_prompt += ("" if negative_prompt == "" else "\n") + line
        else:
            prompt += ("" if prompt == "" else "\n") + line
    figures: dict[str, str] = {}
    for key, value in RE_PARAM.findall(lastline):
        if value[0] == '"' and value[-1] == '"':
            value = json.loads(value)
        size = RE_IMAGESIZE.match(value)
        if size is not None:
            figures |= {f"{key}-1": size.group(1), f"{key}-2": size.group(2)}
        else:
            figures[key] = value
    return Infotext(prompt, negative_prompt, figures)


def infotext_of(file: bytes) -> str | None:
    """`read_info_from_image`."""
    image = Image.open(BytesIO(file))
    comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    if comment is not None:
        assert comment[:8] == b"UNICODE\0"
        return str(comment[8:].decode("utf_16_be"))
    found = image.info.get("parameters")
    if found is None and "comment" in image.info:
        return str(image.info["comment"].decode("utf8"))
    return found
