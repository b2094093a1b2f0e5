"""Where a model runs and in which numbers, and that its checkpoint is whole."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

Model = TypeVar("Model", bound=PreTrainedModel)

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


def loaded(
    kind: type[Model],
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    unused: str | None = None,
) -> Model:
    """A checkpoint's model on its device, to be run and not trained; `unused` as in
    `refuse_missing`. Raises `OSError` if a file is missing, `ValueError` if weights are."""
    disable_progress_bar()
    model, info = kind.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    refuse_missing(info["missing_keys"], folder, unused=unused)
    placed: Model = model.to(device).eval().requires_grad_(False)
    return placed


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
