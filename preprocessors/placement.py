"""Where a model runs and in which numbers, and that its checkpoint is whole."""

from collections.abc import Iterable

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def torch_device(name: str) -> torch.device:
    """A torch device by name; "auto" is the GPU if this process sees one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def torch_dtype(name: str) -> torch.dtype:
    """float32, bfloat16 or float16. Raises `ValueError` for any other name."""
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; it is {name!r}")
    return DTYPES[name]


def refuse_missing(missing: Iterable[str], folder: object, *, unused: str | None = None) -> None:
    """Raises `ValueError` if a checkpoint lacks weights: transformers would make them up.

    Args:
        missing: what `from_pretrained(..., output_loading_info=True)` calls `missing_keys`.
        unused: prefix of weights that may be missing because the model never uses them.
    """
    lost = sorted(key for key in missing if unused is None or not key.startswith(unused))
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise ValueError(f"{folder} lacks the weights {', '.join(lost[:3])}{more}")
