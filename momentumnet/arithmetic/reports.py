"""What steps report of themselves, left on the device: rows that are read together, late, or never.

A row has two integers (two floats where a state is carried in floats). Reading a value of a CUDA tensor waits for all
the work that is queued in front of it, so nothing here reads by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# Rows that are made at a time.
_ROWS = 64


class Reports:
    """Rows of two values, handed out one by one; all zero at first.

    Args:
        device: where the rows lie.
        dtype: of their values.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._rows: list[Tensor] = []

    def row(self) -> Tensor:
        """A row that nobody else has."""
        if not self._rows:
            self._rows = list(torch.zeros((_ROWS, 2), dtype=self._dtype, device=self._device).unbind(0))
        return self._rows.pop()


def is_hollow(tensor: Tensor) -> bool:
    """Whether the tensor has sizes and never values: a fake one, or one on the meta device."""
    return isinstance(tensor, FakeTensor) or tensor.is_meta


def has_values(tensor: Tensor) -> bool:
    """Whether the tensor's values may be read now: not if it has none (fake, meta), nor while CUDA records a graph."""
    return not is_hollow(tensor) and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
