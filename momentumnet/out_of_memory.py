"""What says that memory is used up."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator, of Python or PyTorch, on any device, could not give what it was asked for."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU's allocator has no class for it.
    told = "DefaultCPUAllocator", "allocate memory"
    return isinstance(error, RuntimeError) and any(words in str(error) for words in told)
