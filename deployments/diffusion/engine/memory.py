"""What counts as a lack of memory, whoever says so."""

import torch

# cuDNN, cuBLAS and the CPU's allocator say it in the words of a plain RuntimeError, and CUDA itself
# in those of an AcceleratorError, from which a device recovers.
WORDS = (
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "DefaultCPUAllocator: can't allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: then less at a time may do."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


def held_bytes(device: torch.device) -> int:
    """Memory that torch holds of a device, used or kept for later; 0 of a CPU."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def is_of_device(error: BaseException) -> bool:
    """Whether the device itself failed: it answers nothing any more, and no row is to blame."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)
