"""Pictures on the disk: as a request takes them, and what they say of themselves."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from deployments.contracts.maps import is_map_id
from deployments.contracts.recipe import KEY
from tcd.service import WRONG, Failed

DIGEST = "sha256:"
PICTURES = ("image", "mask", "input_reference")  # fields of a request, wherever they stand


def file_of(path: Path) -> bytes:
    """A picture's file. Raises `Failed`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Failed(f"{path}: {error.strerror or error}") from None


def data_url(data: bytes) -> str:
    """A picture as JSON carries it. What it is, the service sees for itself."""
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


def source_of(text: str) -> str:
    """What names a picture in a request: a URL, or a map's id, as it is; a path as its file."""
    if "://" in text or is_map_id(text):
        return text
    return data_url(file_of(Path(text)))


def file_in(text: Any, field: str) -> bytes:
    """The file that a field of a form names: a data URL, or a path. Raises `Failed`."""
    if not isinstance(text, str) or "://" in text:
        raise Failed(f"{field}: {text!r} is no file", WRONG)
    if text.startswith("data:"):
        return base64.b64decode(text.partition(",")[2])
    return file_of(Path(text))


def request_in(path: Path) -> dict[str, Any]:
    """The request that a picture was made by, as its file says. Raises `Failed`."""
    data = file_of(path)
    try:
        with Image.open(BytesIO(data)) as image:
            text = image.info.get(KEY) or _described(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise Failed(f"{path} is no picture that can be read") from None
    try:
        request = json.loads(text)
        request = request.get(KEY, request)
        assert isinstance(request["prompt"], str)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError):
        raise Failed(
            f"{path} does not say how it was made: it was made elsewhere, with metadata: false, "
            "or another program wrote it anew"
        ) from None
    return dict(request)


def with_pictures(request: Mapping[str, Any], paths: Sequence[Path]) -> dict[str, Any]:
    """A request with the pictures that it names by their digests. Raises `Failed` for those that
    are not among `paths`."""
    known = {}
    for path in paths:
        data = file_of(path)
        known[DIGEST + hashlib.sha256(data).hexdigest()] = data_url(data)
    missing: list[str] = []

    def found(value: Any, field: str, place: str) -> Any:
        if isinstance(value, dict):
            return {name: found(each, name, f"{place}.{name}") for name, each in value.items()}
        if isinstance(value, list):
            return [found(each, field, f"{place}[{n}]") for n, each in enumerate(value)]
        if field in PICTURES and isinstance(value, str) and value.startswith(DIGEST):
            if value not in known:
                missing.append(f"{place} ({value})")
            return known.get(value, value)
        return value

    filled = {name: found(value, name, name) for name, value in request.items()}
    if missing:
        raise Failed(
            f"it was made from pictures that its file does not hold: {', '.join(missing)}; "
            "give their files with --picture"
        )
    return filled


def _described(image: Image.Image) -> str:
    return str(image.getexif().get(ExifTags.Base.ImageDescription, ""))
