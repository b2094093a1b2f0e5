"""Adapter files in memory: all that is read of a disk, which may hang."""

from dataclasses import dataclass
from pathlib import Path

from configs.sources import PEFT_CONFIG, format_refused


class LoraError(Exception):
    """A file that cannot serve as a style adapter of this model. `str(error)` says why, and names
    files without their folders: clients read it."""


@dataclass(frozen=True)
class LoraFile:
    """A safetensors file.

    Attributes:
        name: without its folder.
        content: all of it; not mapped: whoever writes into a mapped file ends the processes
            that read it.
        described: the `adapter_config.json` beside it, where PEFT says its alphas.
    """

    name: str
    content: bytes
    described: bytes | None = None


def read_file(path: Path) -> LoraFile:
    """Reads the one safetensors file that `path` is or holds. Raises `LoraError`."""
    try:
        return read_weights(lora_file(path))
    except OSError as error:
        raise LoraError(f"{path.name} cannot be read ({error.strerror or error})") from error


def read_weights(file: Path) -> LoraFile:
    """Reads a safetensors file. Raises `OSError`."""
    beside = file.with_name(PEFT_CONFIG)
    described = beside.read_bytes() if beside.is_file() else None
    return LoraFile(file.name, file.read_bytes(), described)


def lora_file(path: Path) -> Path:
    """The one safetensors file that `path` is or holds, else `LoraError`."""
    if path.is_file():
        if (reason := format_refused(path.name)) is not None:
            raise LoraError(reason)
        return path
    if not path.exists():
        raise LoraError(f"{path.name} does not exist")
    usual = path / "pytorch_lora_weights.safetensors"
    found = [usual] if usual.exists() else sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise LoraError(f"{path.name} holds {len(found)} safetensors files; name one of them")
    return found[0]
