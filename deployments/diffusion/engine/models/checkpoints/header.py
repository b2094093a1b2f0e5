"""What a safetensors file says of itself: names, shapes and types of its tensors, before any is
read."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from configs.sources import format_refused

Shape = tuple[int, ...]
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F16": 16, "BF16": 16, "I16": 16}
BITS |= {"U16": 16, "F32": 32, "I32": 32, "U32": 32, "F64": 64, "I64": 64, "U64": 64}


class WrongFile(ValueError):
    """A file or a folder that cannot be what a configuration gives it for. `str(error)` says what
    it is instead, or what it lacks."""


@dataclass(frozen=True)
class Header:
    """The tensors of a file, unread.

    Attributes:
        name: of the file, without its folder.
        shapes, dtypes: of its tensors, by name; types in safetensors' words ("BF16").
        metadata: what its writer said of it.
    """

    name: str
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Of its numbers."""
        return sum(
            prod(shape) * BITS.get(self.dtypes[name], 8) // 8 for name, shape in self.shapes.items()
        )


def read_header(file: Path) -> Header:
    """Raises `WrongFile` for what is no safetensors file; never opens a pickle."""
    if (reason := format_refused(file.name)) is not None:
        raise WrongFile(reason)
    try:
        with safe_open(file, framework="numpy") as opened:
            names: list[str] = list(opened.keys())
            slices = {name: opened.get_slice(name) for name in names}
            return Header(
                file.name,
                {name: tuple(part.get_shape()) for name, part in slices.items()},
                {name: str(part.get_dtype()) for name, part in slices.items()},
                opened.metadata() or {},
            )
    except FileNotFoundError as error:
        raise WrongFile(f"{file.name} does not exist") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise WrongFile(f"{file.name} is not a readable safetensors file ({error})") from error
