"""What a device has left, made scarce and measured."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def settle(device: torch.device) -> None:
    """Waits for the device, and gives back what the allocator only kept."""
    torch.cuda.synchronize(device)
    gc.collect()
    torch.cuda.empty_cache()


def allocated(device: torch.device) -> int:
    """Bytes in use."""
    settle(device)
    return torch.cuda.memory_allocated(device)


@torch.inference_mode()
def peak(device: torch.device, run: Callable[[], object]) -> int:
    """Bytes that the allocator needs to run something again, beyond what it holds before."""
    run()
    settle(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_reserved(device) - before


@contextmanager
def only(device: torch.device, room: int) -> Iterator[None]:
    """Leaves this process so many bytes beyond what it holds."""
    settle(device)
    total = torch.cuda.get_device_properties(device).total_memory
    most = torch.cuda.memory_reserved(device) + room
    torch.cuda.set_per_process_memory_fraction(most / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
