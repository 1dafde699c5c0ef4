"""In-place counters of tensors, by which autograd sees that one has been written to."""

from __future__ import annotations

from torch import Tensor


def version(tensor: Tensor) -> int:
    """The tensor's in-place counter; -1 for inference tensors, which have none."""
    try:
        return tensor._version
    except RuntimeError:
        return -1
