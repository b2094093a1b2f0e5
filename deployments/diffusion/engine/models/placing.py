"""From the host to the device, without making the host wait."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the host on a device, in its own or another dtype.

    On a GPU it goes through pinned memory: a copy from pageable memory would wait for all that
    the stream has still to do.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True).to(dtype or tensor.dtype)
