"""The modes of xinsir's ControlNet-Union, by the names that its README has for their maps."""

from typing import Final, Literal

UnionMode = Literal[
    "openpose",
    "depth",
    "hed",
    "pidi",
    "scribble",
    "ted",
    "canny",
    "lineart",
    "anime_lineart",
    "mlsd",
    "normal",
    "segment",
    "tile",
    "repaint",
]
# Tile and repaint are of the "promax" weights alone.
UNION_MODES: Final[dict[UnionMode, int]] = {
    "openpose": 0,
    "depth": 1,
    "hed": 2,
    "pidi": 2,
    "scribble": 2,
    "ted": 2,
    "canny": 3,
    "lineart": 3,
    "anime_lineart": 3,
    "mlsd": 3,
    "normal": 4,
    "segment": 5,
    "tile": 6,
    "repaint": 7,
}
