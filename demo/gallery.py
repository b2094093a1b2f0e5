"""A grid of what the demo's tasks drew, each labelled: `out/demo.png`."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from demo.client import Picture
from demo.tasks import Drawn

COLUMNS = 5
CELL, MARGIN, LABEL = 192, 8, 62
INSET = 64
SHOWN = 4  # of several pictures
TITLE_SIZE, TEXT_SIZE = 13, 11
LINE = 31  # characters of a prompt in a line


def grid(drawn: Sequence[Drawn]) -> Picture:
    """All tasks in rows of five; what a request brought along stands in its picture's sky."""
    rows = -(-len(drawn) // COLUMNS)
    width, height = CELL + MARGIN, CELL + LABEL + MARGIN
    sheet = Image.new("RGB", (COLUMNS * width + MARGIN, rows * height + MARGIN), "white")
    for number, task in enumerate(drawn):
        row, column = divmod(number, COLUMNS)
        sheet.paste(_cell(task), (MARGIN + column * width, MARGIN + row * height))
    return sheet


def _cell(drawn: Drawn) -> Picture:
    cell = Image.new("RGB", (CELL, CELL + LABEL), "white")
    if len(drawn.pictures) == 1:
        cell.paste(_scaled(drawn.pictures[0], CELL), (0, 0))
    else:
        _paste_some(cell, drawn.pictures)
    if drawn.given is not None:
        inset = Image.new("RGB", (INSET + 4, INSET + 4), "white")
        given = _scaled(drawn.given.convert("RGBA"), INSET)
        inset.paste(given, (2, 2), given)
        cell.paste(inset, (CELL - INSET - 4, 0))
    draw = ImageDraw.Draw(cell)
    draw.text((2, CELL + 2), drawn.task, "black", ImageFont.load_default(TITLE_SIZE))
    text = "\n".join(textwrap.wrap(drawn.asked or "(no prompt)", LINE))
    draw.text((2, CELL + 18), text, "dimgray", ImageFont.load_default(TEXT_SIZE))
    return cell


def _paste_some(cell: Picture, pictures: Sequence[Picture]) -> None:
    """Four of them, from first to last, in two rows."""
    side = CELL // 2
    for number in range(SHOWN):
        one = pictures[number * (len(pictures) - 1) // (SHOWN - 1)]
        row, column = divmod(number, 2)
        cell.paste(_scaled(one, side - 1), (column * (side + 1), row * (side + 1)))


def _scaled(picture: Picture, side: int) -> Picture:
    return picture.resize((side, side), Image.Resampling.BICUBIC)
