"""What a device's failures mean: a lack of memory, whoever says so, or its end."""

import torch

# cuDNN, cuBLAS, Triton and the CPU's allocator say it in the words of a plain RuntimeError, CUDA
# itself in those of an AcceleratorError, from which a device recovers. Where there is no workspace,
# torch tries one of cuDNN's ways to convolve after the other and then has found none (`try_configs`
# of its Conv_v8.cpp); what no device can convolve says the same, and fails alone, as what is too
# large. A library that is NOT_INITIALIZED may lack memory for its handle, but may be broken: that
# ends the replica.
WORDS = (
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
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
