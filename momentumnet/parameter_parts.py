"""Parameters of which each process holds a part: how PyTorch's two ways to shard a model mark them."""

from __future__ import annotations

from torch import Tensor


def is_flattened(parameter: Tensor) -> bool:
    """Whether FSDP1 has put the parameter into one with others; the tensor is the part that this process holds then."""
    return bool(getattr(parameter, "_fsdp_flattened", False))


def is_dtensor(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor, as FSDP2 makes parameters."""
    return hasattr(tensor, "full_tensor")  # some builds of torch have no such class
