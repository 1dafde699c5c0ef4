"""What steps report of themselves, left on the device: rows that are read together, late, or never.

A row has two integers (two floats where a state is carried in floats). Reading a value of a CUDA tensor waits for all
the work that is queued in front of it, so nothing here reads by itself. Where the engine has to, it goes by `read` or
`Reading`: a copy that the device makes in its turn, and a wait for that copy alone. So whatever is asked of the device
behind it is not waited for, and `torch.cuda.set_sync_debug_mode` does not take it for a mistake.
"""

from __future__ import annotations

from typing import Any

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


class Reading:
    """The values of a tensor on their way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._values = tensor.detach()
        if tensor.is_cuda:
            self._values = self._values.to("cpu", non_blocking=True)  # to pinned memory
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(tensor.device))

    @property
    def is_of_a_device(self) -> bool:
        """Whether the tensor lies beside the host's memory."""
        return self._copied is not None

    @property
    def is_there(self) -> bool:
        """Whether `values` would not wait; False while CUDA records a graph, as nobody may ask the device then."""
        if self._copied is None:
            return True
        return not torch.cuda.is_current_stream_capturing() and self._copied.query()

    def values(self) -> Any:
        """They, as ``tolist`` gives them. Waits until the device has come to the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()


def read(tensor: Tensor) -> Any:
    """The values of a tensor, now: a number, or lists of them. Waits for the device."""
    return Reading(tensor).values()


def is_hollow(tensor: Tensor) -> bool:
    """Whether the tensor has sizes and never values: a fake one, or one on the meta device."""
    return isinstance(tensor, FakeTensor) or tensor.is_meta


def has_values(tensor: Tensor) -> bool:
    """Whether the tensor's values may be read now: not if it has none (fake, meta), nor while CUDA records a graph."""
    return not is_hollow(tensor) and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
